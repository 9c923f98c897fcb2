"""The Triton backend: `TritonKernels`, and why it cannot compute a call where it cannot."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from peftlab_kernels import products
from peftlab_kernels.protocol import LoraForward, LoraGradients, Needs
from peftlab_kernels.triton.configurations import (
    Target,
    configurations,
    padded_rank,
    regular,
    target_of,
)
from peftlab_kernels.triton.dot import interpreting
from peftlab_kernels.triton.lora_backward import add_masked, cross, dy_pass
from peftlab_kernels.triton.lora_forward import down_project
from peftlab_kernels.triton.philox import Dropout, draw_seed, dropout_of
from peftlab_kernels.triton.product import product

OLDEST_CAPABILITY = (8, 0)
LARGEST_RANK = 256
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class TritonKernels:
    """`base`: the product with the weight by our own kernel, the low-rank part in its epilogue, or
    by cuBLAS, the low-rank part added in place. The passes beside it are ours in both. fp32
    activations over a 16-bit weight take cuBLAS, block by block, whatever `base` says.

    `target` is the device's own kind of GPU unless it is given.
    """

    base: Literal["epilogue", "cublas"]
    target: Target | None = None

    @property
    def name(self) -> str:
        """As `use_backend` spells it."""
        return "triton"

    def forward(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        lora_a: Tensor | None,
        lora_b: Tensor | None,
        *,
        scaling: float,
        dropout: float,
        transposed: bool,
    ) -> LoraForward:
        """See `protocol.Kernels`; h is padded to `padded_rank` columns, the mask is its seed."""
        if x.numel() == 0 or weight.numel() == 0:
            return _forward_of_nothing(x, weight, bias, lora_a, transposed)
        target = self.target or target_of(x.device)
        with _on(x):
            x = _rows_contiguous(x)
            seed = draw_seed() if lora_a is not None and dropout > 0 else None
            h = None
            if lora_a is not None:
                drop = dropout_of(seed, dropout)
                h = down_project(
                    x, lora_a, factor=scaling * drop.scale, dropout=drop, target=target
                )
            if self.base == "epilogue" and not _widens(x, weight):
                up = None if lora_b is None else lora_b.T
                bias = None if bias is None else bias.contiguous()  # the kernel reads it as a row
                y = product(x, _as_outs(weight, x, transposed), h, up, bias=bias, target=target)
            else:
                y = products.forward(x, weight, bias, transposed=transposed)
                if h is not None and lora_b is not None:
                    y.addmm_(h[:, : lora_b.shape[1]], lora_b.to(y.dtype).T)
            return LoraForward(y, h, seed)

    def backward(
        self,
        dy: Tensor,
        x: Tensor | None,
        weight: Tensor,
        lora_a: Tensor | None,
        lora_b: Tensor | None,
        h: Tensor | None,
        mask: Tensor | None,
        *,
        scaling: float,
        dropout: float,
        transposed: bool,
        needs: Needs,
    ) -> LoraGradients:
        """See `protocol.Kernels`."""
        if dy.numel() == 0 or weight.numel() == 0:
            return _gradients_of_nothing(dy, weight, lora_a, lora_b, transposed, needs)
        target = self.target or target_of(dy.device)
        drop = dropout_of(mask, dropout)
        with _on(dy):
            dy = _rows_contiguous(dy)
            g = da = db = dx = None
            if lora_a is not None and lora_b is not None:
                g, db = _dy_side(dy, lora_b, h, scaling * drop.scale, target, needs)
                lora_a = lora_a.contiguous()
                if needs.lora_a and x is not None and g is not None:
                    x = _rows_contiguous(x)
                    da = cross(g, x, lora_a, dropout=drop, target=target)
            if needs.x:
                dx = self._x_gradient(dy, weight, g, lora_a, drop, transposed, target)
            return LoraGradients(dx, da, db)

    def _x_gradient(
        self,
        dy: Tensor,
        weight: Tensor,
        g: Tensor | None,
        lora_a: Tensor | None,
        dropout: Dropout,
        transposed: bool,
        target: Target,
    ) -> Tensor:
        if self.base == "epilogue" and not _widens(dy, weight):
            ins = _as_outs(weight, dy, transposed).T
            return product(dy, ins, g, lora_a, dropout=dropout, target=target)
        dx = products.backward(dy, weight, transposed=transposed)
        if g is None or lora_a is None:
            return dx
        if dropout.threshold:
            return add_masked(dx, g, lora_a, dropout=dropout, target=target)
        return dx.addmm_(g[:, : lora_a.shape[0]], lora_a.to(dx.dtype))


def why_not(x: Tensor, weight: Tensor, lora_a: Tensor | None, lora_b: Tensor | None) -> str | None:
    """Why the kernels cannot compute this call, in words; None where they can."""
    if torch.compiler.is_compiling():
        return "torch.compile is tracing, which cannot see into the kernels"
    if not interpreting():
        if not x.is_cuda:
            return f"the tensors are on {x.device.type}, and Triton needs a CUDA device"
        if torch.version.hip is not None:
            return "the kernels compile for AMD's GPUs but have never run on one"
        if (capability := torch.cuda.get_device_capability(x.device)) < OLDEST_CAPABILITY:
            return (
                f"the GPU has compute capability {capability[0]}.{capability[1]}, and the kernels "
                f"need {OLDEST_CAPABILITY[0]}.{OLDEST_CAPABILITY[1]}"
            )
    elif x.device.type not in {"cpu", "cuda"}:
        return f"the tensors are on {x.device.type}, which has no memory to interpret kernels on"
    tensors = {"x": x, "weight": weight, "lora_a": lora_a, "lora_b": lora_b}
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if type(tensor) not in (Tensor, torch.nn.Parameter):
            return f"{name} is a {type(tensor).__name__}, in whose memory a kernel cannot read"
        if tensor.dtype not in DTYPES:
            return f"{name} is {tensor.dtype}; the kernels take float32, bfloat16 and float16"
        if tensor.device != x.device:
            return f"{name} is on {tensor.device} and x on {x.device}"
    if lora_a is not None and lora_a.shape[0] > LARGEST_RANK:
        return f"the rank is {lora_a.shape[0]}, and the kernels go up to {LARGEST_RANK}"
    return None


def _dy_side(
    dy: Tensor, lora_b: Tensor, h: Tensor | None, factor: float, target: Target, needs: Needs
) -> tuple[Tensor | None, Tensor | None]:
    """`g` and `dB`, from one reading of dy where that is the cheaper way; None if not needed."""
    b = lora_b.contiguous()
    wants_g, wants_db = needs.x or needs.lora_a, needs.lora_b and h is not None
    once = regular(dy) and padded_rank(b.shape[1]) in configurations(target, dy.dtype).dy_pass
    if h is not None and wants_g and wants_db and once:
        return dy_pass(dy, b, h, factor=factor, target=target)
    g = down_project(dy, b.T, factor=factor, target=target) if wants_g else None
    if h is None or not wants_db:
        return g, None
    return g, cross(h, dy, b, transposed=True, target=target)


def _as_outs(weight: Tensor, x: Tensor, transposed: bool) -> Tensor:
    """The weight as [N, K] in x's dtype, one of its dimensions contiguous."""
    weight = weight.to(x.dtype)
    if 1 not in weight.stride() or min(weight.stride()) == 0:
        weight = weight.contiguous()
    return weight.T if transposed else weight


def _widens(x: Tensor, weight: Tensor) -> bool:
    """Whether x is wider than the weight, which torch's path then widens some rows at a time."""
    return x.element_size() > weight.element_size()


def _rows_contiguous(matrix: Tensor) -> Tensor:
    """The matrix with its rows contiguous and none of them shared, copied where it must be."""
    if matrix.stride(1) == 1 and matrix.stride(0) >= matrix.shape[1]:
        return matrix
    return matrix.clone(memory_format=torch.contiguous_format)


def _on(tensor: Tensor) -> AbstractContextManager[object]:
    """Launches go to the current device: make it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _forward_of_nothing(
    x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor | None, transposed: bool
) -> LoraForward:
    """No rows, no columns or nothing to sum over: there is nothing to launch."""
    y = x.new_zeros(x.shape[0], weight.shape[1 if transposed else 0])
    h = None if lora_a is None else x.new_zeros(x.shape[0], padded_rank(lora_a.shape[0]))
    return LoraForward(y if bias is None else y.add_(bias), h, None)


def _gradients_of_nothing(
    dy: Tensor,
    weight: Tensor,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    transposed: bool,
    needs: Needs,
) -> LoraGradients:
    return LoraGradients(
        dy.new_zeros(dy.shape[0], weight.shape[0 if transposed else 1]) if needs.x else None,
        torch.zeros_like(lora_a) if lora_a is not None and needs.lora_a else None,
        torch.zeros_like(lora_b) if lora_b is not None and needs.lora_b else None,
    )
