"""What a backend offers: the operators' forward and backward on matrices, and nothing else.

Notation as in `reference.py`. The caller has flattened `x` to two dimensions, brought it to the
dtype the arithmetic is wanted in, and switched autocast off. `h` and `mask` go from a backend's
forward to the same backend's backward and mean nothing to anyone else.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


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
        weight: Tensor,
        bias: Tensor | None,
        lora_a: Tensor | None,
        lora_b: Tensor | None,
        *,
        scaling: float,
        dropout: float,
        transposed: bool,
    ) -> LoraForward:
        """`x [M, K]`, `weight [N, K]` ([K, N] if transposed), `lora_a [R, K]`, `lora_b [N, R]`.

        Without an adapter this is the frozen linear layer: `h` and `mask` are None.
        """
        ...

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
        """Gradients for `dy [M, N]`, which has x's dtype and may have any strides."""
        ...
