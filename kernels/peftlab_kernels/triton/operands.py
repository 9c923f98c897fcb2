"""Operands prepared for launching kernels, and the results where nothing is launched."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from peftlab_kernels.eager.products import Weight, in_features_of, out_features_of
from peftlab_kernels.protocol import LoraForward, LoraGradients, Needs
from peftlab_kernels.triton.configurations import padded_rank


def rows_contiguous(matrix: Tensor) -> Tensor:
    """The matrix with its rows contiguous and none of them shared, copied where it must be."""
    if matrix.stride(1) == 1 and matrix.stride(0) >= matrix.shape[1]:
        return matrix
    return matrix.clone(memory_format=torch.contiguous_format)


def launching_on(tensor: Tensor) -> AbstractContextManager[object]:
    """Launches go to the current device: make it the tensor's."""
    if not tensor.is_cuda or tensor.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)


def empty_forward(
    rows: int,
    weight: Weight,
    bias: Tensor | None,
    lora_a: Tensor | None,
    *,
    dtype: torch.dtype,
    transposed: bool = False,
) -> LoraForward:
    """The result for operands without elements, for which nothing is launched."""
    device = (weight if isinstance(weight, Tensor) else weight.codes).device
    y = torch.zeros(
        rows, out_features_of(weight, transposed=transposed), dtype=dtype, device=device
    )
    h = None
    if lora_a is not None:
        h = torch.zeros(rows, padded_rank(lora_a.shape[0]), dtype=dtype, device=device)
    return LoraForward(y if bias is None else y.add_(bias), h, None)


def empty_gradients(
    dy: Tensor,
    weight: Weight,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    needs: Needs,
    *,
    transposed: bool = False,
) -> LoraGradients:
    """The gradients of such a call: zeros, or empty."""
    in_features = in_features_of(weight, transposed=transposed)
    return LoraGradients(
        dy.new_zeros(dy.shape[0], in_features) if needs.x else None,
        torch.zeros_like(lora_a) if lora_a is not None and needs.lora_a else None,
        torch.zeros_like(lora_b) if lora_b is not None and needs.lora_b else None,
    )
