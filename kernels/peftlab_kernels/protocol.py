"""The interface of a backend: the operators' forward and backward on matrices.

Notation as in `reference.py`. The caller has flattened `x` to two dimensions, cast it to the dtype
of the arithmetic, and switched autocast off. `h` and `mask` pass from a backend's forward to its
own backward and are opaque to the caller.
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
    """Gradients, contiguous and in the dtype of their tensors; None where not needed."""

    x: Tensor | None
    lora_a: Tensor | None
    lora_b: Tensor | None


class Needs(NamedTuple):
    """The gradients that backward has to form."""

    x: bool
    lora_a: bool
    lora_b: bool


class Call(NamedTuple):
    """What a backend is chosen for: the tensors and options of one call, as `Kernels` has them."""

    x: Tensor
    weight: Tensor | Int8Weight
    lora_a: Tensor | None = None
    lora_b: Tensor | None = None
    dropout: float = 0.0
    transposed: bool = False


class Backend(Protocol):
    """An entry of `dispatch.BACKENDS`."""

    @property
    def name(self) -> str:
        """As `use_backend`, `PEFTLAB_BACKEND` and reports spell it."""
        ...

    def why_not(self, call: Call) -> str | None:
        """Why this backend cannot compute the call; None where it can."""
        ...

    def kernels(self, call: Call) -> Kernels:
        """The kernels for the call; called only where `why_not` is None."""
        ...

    def int8_kernels(self, call: Call) -> Int8Kernels:
        """The same with both operands of the base products in 8 bits."""
        ...


class Kernels(Protocol):
    """A backend's kernels for a call, chosen in forward and kept for its backward."""

    @property
    def name(self) -> str:
        """The backend's name."""
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

        A weight in 8 bits is `[N, K]`, and is dequantised for the product (w8a16).
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
    folded in, once for dx. The thin products read the codes of x, and dy unquantised.
    """

    @property
    def name(self) -> str:
        """The backend's name."""
        ...

    def quantize(self, x: Tensor) -> Int8Rows:
        """Quantise `x [M, K]`, any strides, by rows; a NaN or infinity becomes its row's step."""
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
