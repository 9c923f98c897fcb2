"""`TritonKernels`, and `why_not`: the reasons for which they cannot compute a call."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from peftlab_kernels.checks import LARGEST_RANK
from peftlab_kernels.eager import products
from peftlab_kernels.eager.products import Weight
from peftlab_kernels.int8_format import Int8Weight
from peftlab_kernels.protocol import LoraForward, LoraGradients, Needs
from peftlab_kernels.triton.configurations import Target, target_of
from peftlab_kernels.triton.dot import interpreting
from peftlab_kernels.triton.int8_weight import dequantize
from peftlab_kernels.triton.lora_backward import cross, dy_side
from peftlab_kernels.triton.lora_forward import down_project
from peftlab_kernels.triton.masked_addition import add_masked
from peftlab_kernels.triton.operands import (
    empty_forward,
    empty_gradients,
    launching_on,
    rows_contiguous,
)
from peftlab_kernels.triton.partials import Sum, add_up
from peftlab_kernels.triton.philox import Dropout, draw_seed, dropout_of
from peftlab_kernels.triton.product import product

OLDEST_CAPABILITY = (8, 0)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class TritonKernels:
    """`base`: the product with the weight by the Triton kernel, the low-rank part in its epilogue,
    or by cuBLAS, the low-rank part added in place. The side passes are Triton's in both. cuBLAS is
    always used for a weight in 8 bits, which is dequantised first, and for fp32 activations over a
    narrower weight, which is widened block by block.

    `target` defaults to the device's own.
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
        weight: Weight,
        bias: Tensor | None,
        lora_a: Tensor | None,
        lora_b: Tensor | None,
        *,
        scaling: float,
        dropout: float,
        transposed: bool,
    ) -> LoraForward:
        """See `protocol.Kernels`; h is padded to `padded_rank` columns, the mask is its seed."""
        if x.numel() == 0 or _matrix(weight).numel() == 0:
            return empty_forward(
                x.shape[0], weight, bias, lora_a, dtype=x.dtype, transposed=transposed
            )
        target = self.target or target_of(x.device)
        with launching_on(x):
            x = rows_contiguous(x)
            seed = draw_seed() if lora_a is not None and dropout > 0 else None
            h = None
            if lora_a is not None:
                drop = dropout_of(seed, dropout)
                h = down_project(
                    x, lora_a, factor=scaling * drop.scale, dropout=drop, target=target
                )
            if self.base == "epilogue" and isinstance(weight, Tensor) and not _widens(x, weight):
                up = None if lora_b is None else lora_b.T
                bias = None if bias is None else bias.contiguous()  # the kernel reads it as a row
                y = product(x, _n_by_k(weight, x, transposed), h, up, bias=bias, target=target)
            else:
                whole = _dequantized(weight, x.dtype, target)
                y = products.forward(x, whole, bias, transposed=transposed)
                if h is not None and lora_b is not None:
                    y.addmm_(h[:, : lora_b.shape[1]], lora_b.to(y.dtype).T)
            return LoraForward(y, h, seed)

    def backward(
        self,
        dy: Tensor,
        x: Tensor | None,
        weight: Weight,
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
        if dy.numel() == 0 or _matrix(weight).numel() == 0:
            return empty_gradients(dy, weight, lora_a, lora_b, needs, transposed=transposed)
        target = self.target or target_of(dy.device)
        drop = dropout_of(mask, dropout)
        with launching_on(dy):
            dy = rows_contiguous(dy)
            g = da = db = dx = None
            if lora_a is not None and lora_b is not None:
                sums: list[Sum] = []
                g, db = dy_side(dy, lora_b, h, scaling * drop.scale, target, needs, sums)
                lora_a = lora_a.contiguous()
                if needs.lora_a and x is not None and g is not None:
                    x = rows_contiguous(x)
                    da = cross(g, x, lora_a, dropout=drop, target=target, unfinished=sums)
                add_up(*sums)
            if needs.x:
                dx = self._x_gradient(dy, weight, g, lora_a, drop, transposed, target)
            return LoraGradients(dx, da, db)

    def _x_gradient(
        self,
        dy: Tensor,
        weight: Weight,
        g: Tensor | None,
        lora_a: Tensor | None,
        dropout: Dropout,
        transposed: bool,
        target: Target,
    ) -> Tensor:
        if self.base == "epilogue" and isinstance(weight, Tensor) and not _widens(dy, weight):
            k_by_n = _n_by_k(weight, dy, transposed).T
            return product(dy, k_by_n, g, lora_a, dropout=dropout, target=target)
        whole = _dequantized(weight, dy.dtype, target)
        dx = products.backward(dy, whole, transposed=transposed)
        if g is None or lora_a is None:
            return dx
        if dropout.threshold:
            return add_masked(dx, g, lora_a, dropout=dropout, target=target)
        return dx.addmm_(g[:, : lora_a.shape[0]], lora_a.to(dx.dtype))


def why_not(x: Tensor, weight: Weight, lora_a: Tensor | None, lora_b: Tensor | None) -> str | None:
    """Why the kernels cannot compute this call; None where they can."""
    if not interpreting():
        if not x.is_cuda:
            return f"the tensors are on {x.device.type}, and Triton needs a CUDA device"
        if torch.version.hip is not None:
            return "the kernels compile for AMD GPUs but have never been run on one"
        if (capability := _capability(x.get_device())) < OLDEST_CAPABILITY:
            return (
                f"the GPU has compute capability {capability[0]}.{capability[1]}, and the kernels "
                f"need {OLDEST_CAPABILITY[0]}.{OLDEST_CAPABILITY[1]}"
            )
    elif x.device.type not in {"cpu", "cuda"}:
        return f"the tensors are on {x.device.type}, where Triton's interpreter cannot run"
    tensors = {"x": x, "lora_a": lora_a, "lora_b": lora_b}
    if isinstance(weight, Int8Weight):
        tensors |= {"codes": weight.codes, "scales": weight.scales}
    else:
        tensors["weight"] = weight
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if type(tensor) not in (Tensor, torch.nn.Parameter):
            return f"{name} is a {type(tensor).__name__}, whose memory a kernel cannot read"
        if name == "codes" and tensor.dtype is not torch.int8:
            return f"codes are {tensor.dtype}; the kernels take int8"
        if name != "codes" and tensor.dtype not in DTYPES:
            return f"{name} is {tensor.dtype}; the kernels take float32, bfloat16 and float16"
        if tensor.device != x.device:
            return f"{name} is on {tensor.device} and x on {x.device}"
    if lora_a is not None and lora_a.shape[0] > LARGEST_RANK:
        return f"the rank is {lora_a.shape[0]}, and the kernels go up to {LARGEST_RANK}"
    return None


@cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def _matrix(weight: Weight) -> Tensor:
    return weight.codes if isinstance(weight, Int8Weight) else weight


def _dequantized(weight: Weight, dtype: torch.dtype, target: Target) -> Weight:
    """A weight in 8 bits dequantised to 16; for fp32 it stays, to be dequantised by blocks."""
    if isinstance(weight, Tensor) or dtype is torch.float32:
        return weight
    return dequantize(weight, dtype, target=target)


def _n_by_k(weight: Tensor, x: Tensor, transposed: bool) -> Tensor:
    """The weight as [N, K] in x's dtype, one of its dimensions contiguous."""
    if weight.dtype is not x.dtype:
        weight = weight.to(x.dtype)
    if weight.is_contiguous():
        return weight.T if transposed else weight
    if 1 not in weight.stride() or min(weight.stride()) == 0:
        weight = weight.contiguous()
    return weight.T if transposed else weight


def _widens(x: Tensor, weight: Tensor) -> bool:
    """Whether x is wider than the weight, which is then widened some rows at a time."""
    return x.element_size() > weight.element_size()
