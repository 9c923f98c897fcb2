"""How far a result is from float64, and how far it may be."""

from __future__ import annotations

import torch
from torch import Tensor

BOUND = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-2}
"""Relative Frobenius errors, as the kernels' design bounds them."""


def error(found: Tensor, truth: Tensor, uncancelled: Tensor | None = None) -> float:
    """Relative to the truth, or to how large it is where its terms do not cancel."""
    assert found.shape == truth.shape
    if not truth.numel():
        return 0.0
    size = truth.norm().clamp_min(1e-30)
    if uncancelled is not None:
        size = torch.maximum(size, uncancelled.norm())
    return float((found.double() - truth).norm() / size)
