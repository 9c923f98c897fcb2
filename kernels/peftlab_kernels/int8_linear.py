"""A frozen linear layer stored in 8 bits, with the names and the bits of bitsandbytes.

Legend: K in_features, N out_features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from peftlab_kernels.functional import int8_lora_linear
from peftlab_kernels.int8_format import int8_quantize

BY_ROWS = 0
"""`weight_format` of codes in row-major order, the one layout that bitsandbytes still writes."""


class Int8Linear(nn.Linear):
    """`x @ W.T + bias` with W [N, K] held as int8 codes and a scale for each row.

    `weight` is the codes, an int8 parameter that never trains; the buffer `SCB` holds the fp32
    scales [N]; `weight_format` is always `BY_ROWS`. They keep their dtypes when the module is
    cast; the bias, of any floating dtype, is cast with the module. The result has the dtype of `x`.
    """

    SCB: Tensor
    weight_format: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """A layer of zeros on a device, its bias in `dtype`."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        codes = torch.zeros(out_features, in_features, dtype=torch.int8, device=device)
        self.weight = nn.Parameter(codes, requires_grad=False)
        zeros = torch.zeros(out_features, device=device, dtype=dtype) if bias else None
        self.bias = None if zeros is None else nn.Parameter(zeros, requires_grad=False)  # type: ignore[assignment]
        self.register_buffer("SCB", torch.zeros(out_features, dtype=torch.float32, device=device))
        self.register_buffer("weight_format", torch.tensor(BY_ROWS, dtype=torch.uint8).to(device))

    @classmethod
    def from_weight(cls, weight: Tensor, bias: Tensor | None = None) -> Self:
        """Quantise `weight [N, K]`, any float dtype; `bias [N]` is taken as it is, frozen.

        Raises `ValueError` as `int8_quantize` does.
        """
        codes, scales = int8_quantize(weight.detach())
        layer = cls(codes.shape[1], codes.shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(codes, requires_grad=False)
        layer.SCB = scales
        layer.weight_format = torch.tensor(BY_ROWS, dtype=torch.uint8, device=codes.device)
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
        return layer

    def forward(self, input: Tensor) -> Tensor:
        """`input [..., K]` -> [..., N]. The weight gets no gradient, the bias one if it trains."""
        return int8_lora_linear(input, self.weight, self.SCB, bias=self.bias, arithmetic="w8a16")

    def reset_parameters(self) -> None:
        """Do nothing: codes come from a checkpoint or from `from_weight`."""

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits=8"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move all tensors; cast all but the codes, their scales and their format."""
        kept = {id(self.weight), id(self.SCB), id(self.weight_format)}

        def moved(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            if id(tensor) not in kept or result.dtype is tensor.dtype:
                return result
            return tensor.detach().to(result.device)

        return super()._apply(moved, recurse)  # type: ignore[no-untyped-call,no-any-return]

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        weight, scales = state_dict.get(f"{prefix}weight"), state_dict.get(f"{prefix}SCB")
        layout = state_dict.setdefault(f"{prefix}weight_format", self.weight_format)
        problem = None
        if weight is not None and weight.dtype is not torch.int8:
            problem = f"{prefix}weight is {weight.dtype}, and this layer holds int8 codes"
        elif scales is not None and scales.dtype is not torch.float32:
            problem = f"{prefix}SCB is {scales.dtype}, and its scales are torch.float32"
        elif not layout.is_meta and int(layout) != BY_ROWS:
            problem = f"{prefix}weight_format is {int(layout)}; only {BY_ROWS}, rows, is read"
        if problem is not None:
            error_msgs.append(problem)
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
