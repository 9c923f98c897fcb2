"""What a backend offers: the operators' forward and backward on matrices, and nothing else.

Notation as in `reference.py`. The caller has flattened `x` to two dimensions, brought it to the
dtype the arithmetic is wanted in, and switched autocast off. `h` and `mask` go from a backend's
forward to the same backend's backward and mean nothing to anyone else.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from peftlab_kernels.int8_format import Int8Rows, Int8Weight


class LoraForward(NamedTuple):
    """`y [M, N]` in x's dtype; `h` (s D x A^T, rows first) and `mask`, None where not needed."""

    y: Tensor
    h: Tensor | None
    mask: Tensor | None


class LoraGradients(NamedTuple):
    """Gradients, contiguous and in the dtype of what they belong to; None where not asked for."""

    x: Tensor | None
    lora_a: Tensor | None
    lora_b: Tensor | None


class Needs(NamedTuple):
    """Which gradients backward has to form."""

    x: bool
    lora_a: bool
    lora_b: bool


class Kernels(Protocol):
    """One backend, chosen in forward and kept for the backward of the same call."""

    @property
    def name(self) -> str:
        """The backend's name, as `use_backend` and reports spell it."""
        ...

    def forward(
        self,
        x: Tensor,
        weight: Tensor | Int8Weight,
        bias: Tensor | None,
        lora_a: Tensor | None,
        lora_b: Tensor | None,
        *,
        scaling: float,
        dropout: float,
        transposed: bool,
    ) -> LoraForward:
        """`x [M, K]`, `weight [N, K]` ([K, N] if transposed), `lora_a [R, K]`, `lora_b [N, R]`.

        A weight in 8 bits is `[N, K]`, and the product is with what it stands for (w8a16).
        Without an adapter this is the frozen linear layer: `h` and `mask` are None.
        """
        ...

    def backward(
        self,
        dy: Tensor,
        x: Tensor | None,
        weight: Tensor | Int8Weight,
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
        """Gradients for `dy [M, N]`, which has x's dtype and may have any strides."""
        ...


class Int8Kernels(Protocol):
    """The same with both operands of the base products in 8 bits (w8a8).

    Activations are quantised by rows once, for forward and for dA; dy, with the weight's scales
    folded in, once more for dx. Not the thin products: they read the codes of x and dy as it is.
    """

    @property
    def name(self) -> str:
        """The backend's name, as `use_backend` and reports spell it."""
        ...

    def quantize(self, x: Tensor) -> Int8Rows:
        """`x [M, K]`, any strides, by rows. A row with a NaN or infinity makes its step one."""
        ...

    def forward(
        self,
        x: Int8Rows,
        weight: Int8Weight,
        bias: Tensor | None,
        lora_a: Tensor | None,
        lora_b: Tensor | None,
        *,
        dtype: torch.dtype,
        scaling: float,
        dropout: float,
    ) -> LoraForward:
        """`y [M, N]` in `dtype`; `lora_a [R, K]`, `lora_b [N, R]`, or None for the frozen layer."""
        ...

    def backward(
        self,
        dy: Tensor,
        x: Int8Rows | None,
        weight: Int8Weight,
        lora_a: Tensor | None,
        lora_b: Tensor | None,
        h: Tensor | None,
        mask: Tensor | None,
        *,
        scaling: float,
        dropout: float,
        needs: Needs,
    ) -> LoraGradients:
        """Gradients for `dy [M, N]`, which has the dtype of y and may have any strides."""
        ...
