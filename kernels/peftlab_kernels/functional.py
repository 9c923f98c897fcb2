"""`lora_linear` and `int8_lora_linear` as users call them: checked, flattened, differentiable."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from peftlab_kernels.autograd import Int8LoraLinear, LoraLinear, without_autocast
from peftlab_kernels.checks import (
    LARGEST_RANK,
    check_adapter,
    check_int8_weight,
    check_weight,
)
from peftlab_kernels.error_gate import TOLERANCE, verdict_on
from peftlab_kernels.int8_format import Int8Weight
from peftlab_kernels.scaling import fold_scaling
from peftlab_kernels.shared_rows import shared_rows

__all__ = ["LARGEST_RANK", "Int8Arithmetic", "int8_lora_linear", "lora_linear"]

Int8Arithmetic = Literal["w8a8", "w8a16"]
"""Whether activations are quantised to 8 bits as the weight is, or keep their own dtype."""


def lora_linear(
    x: Tensor,
    weight: Tensor,
    lora_a: Tensor | None = None,
    lora_b: Tensor | None = None,
    *,
    scaling: float | Tensor = 1.0,
    bias: Tensor | None = None,
    lora_bias: Tensor | None = None,
    dropout: float = 0.0,
    transposed: bool = False,
) -> Tensor:
    """A frozen linear layer with a LoRA adapter: `x W^T + bias + scaling * dropout(x) A^T B^T`.

    Without an adapter (`lora_a` and `lora_b` None) it is the frozen layer alone.

    Args:
        x: `[..., K]`, any floating dtype. Under autocast it is cast to autocast's dtype.
        weight: `[N, K]`, or `[K, N]` if `transposed` (GPT-2's Conv1D). Frozen. Of x's dtype, or
            16-bit beside fp32 x: then it is widened block by block and the arithmetic is fp32.
        lora_a: `[R, K]`, R up to 256; any floating dtype. Its gradient has its dtype.
        lora_b: `[N, R]`, likewise.
        scaling: The adapter's factor; a tensor of one element may require a gradient.
        bias: `[N]`; may require a gradient.
        lora_bias: `[N]`, the bias of B, times `scaling`; may require a gradient.
        dropout: The probability for this call, in [0, 1); 0 in evaluation.
        transposed: Whether `weight` is `[K, N]`.

    Returns:
        `[..., N]` in x's dtype, or autocast's.

    Raises:
        ValueError: shapes that do not fit, a scaling of several elements, a dropout outside [0, 1),
            a weight that requires a gradient.
        TypeError: dtypes that do not match, or that are not floating.
        RuntimeError: a backend is requested by name and cannot compute this call.

    Second derivatives are not supported. LoRA: Hu et al. 2021, arXiv:2106.09685.
    """
    check_weight(x, weight, transposed=transposed)
    in_features, out_features = weight.shape if transposed else weight.shape[::-1]
    check_adapter(in_features, out_features, lora_a, lora_b, bias, lora_bias, dropout)
    factor, lora_b, lora_bias = fold_scaling(scaling, lora_b, lora_bias)
    bias = _with_lora_bias(bias, lora_bias, factor)
    call = _flattened(x)
    with call.autocast_off:
        y: Tensor = LoraLinear.apply(  # type: ignore[no-untyped-call]
            call.rows, weight, None, bias, lora_a, lora_b, factor, dropout, transposed
        )
    return y.view(*x.shape[:-1], out_features)


def int8_lora_linear(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    lora_a: Tensor | None = None,
    lora_b: Tensor | None = None,
    *,
    scaling: float | Tensor = 1.0,
    bias: Tensor | None = None,
    lora_bias: Tensor | None = None,
    dropout: float = 0.0,
    arithmetic: Int8Arithmetic | Literal["auto"] = "auto",
    tolerance: float = TOLERANCE,
) -> Tensor:
    """`lora_linear` over a frozen weight in 8 bits, as `int8_quantize` returns it.

    With `w8a8` x is quantised by rows and both base products, of forward and of dx, are integer
    products; x is saved in 8 bits, once for all calls on the same tensor (such as q, k and v). With
    `w8a16` the weight is dequantised when it is needed, never saved, and x keeps its dtype.

    Args:
        x: `[..., K]`, any floating dtype. Under autocast it is cast to autocast's dtype.
        codes: `[N, K]`, int8.
        scales: `[N]`, fp32: `W ~ codes * scales / 127`.
        lora_a, lora_b, scaling, bias, lora_bias, dropout: as `lora_linear` has them.
        arithmetic: `auto` measures the error of w8a8 on some rows of this x and uses w8a8 where the
            error is within the tolerance; a layer should measure once (`error_gate`) and pass the
            result.
        tolerance: For `auto`, in multiples of the error on Gaussian rows.

    Returns:
        `[..., N]` in x's dtype, or autocast's.

    Raises:
        ValueError: as `lora_linear`, or an unknown arithmetic.
        TypeError: codes that are not int8, scales that are not fp32, others that are not floating.
        RuntimeError: a backend is requested by name and cannot compute this call.

    The gradient passes the quantisation of x unchanged (straight-through). LLM.int8: Dettmers et
    al. 2022, arXiv:2208.07339.
    """
    check_int8_weight(x, codes, scales)
    out_features, in_features = codes.shape
    check_adapter(in_features, out_features, lora_a, lora_b, bias, lora_bias, dropout)
    if arithmetic not in ("auto", "w8a8", "w8a16"):
        raise ValueError(f"arithmetic is {arithmetic!r}; it must be auto, w8a8 or w8a16")
    factor, lora_b, lora_bias = fold_scaling(scaling, lora_b, lora_bias)
    bias = _with_lora_bias(bias, lora_bias, factor)
    call = _flattened(x)
    weight = Int8Weight(codes, scales)
    with call.autocast_off:
        if arithmetic == "auto":
            arithmetic = verdict_on(call.rows, weight, tolerance)
        if arithmetic == "w8a16":
            y: Tensor = LoraLinear.apply(  # type: ignore[no-untyped-call]
                call.rows, codes, scales, bias, lora_a, lora_b, factor, dropout, False
            )
        else:
            row_codes, steps = shared_rows(x, call.rows, weight)
            y = Int8LoraLinear.apply(  # type: ignore[no-untyped-call]
                call.rows, row_codes, steps, codes, scales, bias, lora_a, lora_b, factor, dropout
            )
    return y.view(*x.shape[:-1], out_features)


class _Flattened(NamedTuple):
    rows: Tensor
    """x as [M, K], in autocast's dtype where autocast is on."""
    autocast_off: AbstractContextManager[object]
    """Autocast does not cover `addmm_` and `out=`: it is off around the arithmetic."""


def _flattened(x: Tensor) -> _Flattened:
    rows = x if x.dim() == 2 else x.reshape(x.shape[:-1].numel(), x.shape[-1])
    device = x.device.type
    off = without_autocast(device)
    return _Flattened(
        rows.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else rows,
        off,
    )


def _with_lora_bias(bias: Tensor | None, lora_bias: Tensor | None, factor: float) -> Tensor | None:
    """`bias + factor * lora_bias`."""
    if lora_bias is None:
        return bias
    # Summed in fp32: rounded once, with the result.
    extra = lora_bias.to(torch.promote_types(lora_bias.dtype, torch.float32)) * factor
    return extra if bias is None else bias + extra
