"""The Triton backend: `TritonKernels`, and why it cannot compute a call where it cannot."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from peftlab_kernels import products
from peftlab_kernels.protocol import LoraForward, LoraGradients, Needs
from peftlab_kernels.triton.configurations import Target, padded_rank, target_of
from peftlab_kernels.triton.dot import interpreting
from peftlab_kernels.triton.lora_backward import add_masked, dy_pass, x_pass
from peftlab_kernels.triton.lora_forward import down_project
from peftlab_kernels.triton.philox import NO_DROPOUT, Dropout, draw_seed, dropout_of
from peftlab_kernels.triton.product import product

OLDEST_CAPABILITY = (8, 0)
LARGEST_RANK = 256
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class TritonKernels:
    """`base`: the product with the weight by our own kernel, the low-rank part in its epilogue, or
    by cuBLAS, the low-rank part added in place. The passes beside it are ours in both.

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
            if self.base == "epilogue":
                up = None if lora_b is None else lora_b.T
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
                factor = scaling * drop.scale
                if needs.lora_b and h is not None:
                    g, db = dy_pass(dy, lora_b.contiguous(), h, factor=factor, target=target)
                elif needs.x or needs.lora_a:
                    g = down_project(dy, lora_b.T, factor=factor, dropout=NO_DROPOUT, target=target)
                lora_a = lora_a.contiguous()
                if needs.lora_a and x is not None and g is not None:
                    da = x_pass(_rows_contiguous(x), g, lora_a, dropout=drop, target=target)
            if needs.x:
                dx = self._x_gradient(dy, weight, g, lora_a, drop, transposed, target)
            return LoraGradients(dx, da, db if needs.lora_b else None)

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
        if self.base == "epilogue":
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


def _as_outs(weight: Tensor, x: Tensor, transposed: bool) -> Tensor:
    """The weight as [N, K], one of its dimensions contiguous, no wider than x."""
    if x.dtype is not torch.float32:
        weight = weight.to(x.dtype)  # fp32 x instead takes 16-bit weights as they are
    if 1 not in weight.stride():
        weight = weight.contiguous()
    return weight.T if transposed else weight


def _rows_contiguous(matrix: Tensor) -> Tensor:
    """The matrix with its rows contiguous and none of them shared, copied where it must be."""
    if matrix.stride(1) == 1 and matrix.stride(0) >= matrix.shape[1]:
        return matrix
    return matrix.contiguous()


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
