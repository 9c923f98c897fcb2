"""The measured layer: a linear layer with an adapter, its sizes, weights and inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

SCALING = 2
SHORT = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True, slots=True)
class Case:
    """One layer and its input: x [rows, in_features] of `dtype`, as the frozen weight is."""

    rows: int
    in_features: int
    out_features: int
    rank: int = 16
    dropout: float = 0.0
    dtype: torch.dtype = torch.bfloat16
    device: str = "cpu"

    def __str__(self) -> str:
        return (
            f"{SHORT[self.dtype]} M={self.rows} {self.in_features}>{self.out_features} "
            f"r={self.rank} p={self.dropout:g}"
        )


class Weights(NamedTuple):
    """`weight [N, K]` of the case's dtype, `lora_a [R, K]` and `lora_b [N, R]` in fp32."""

    weight: Tensor
    lora_a: Tensor
    lora_b: Tensor


def weights_of(case: Case, seed: int = 0) -> Weights:
    """Random values of a trained model's size; B is not zero, so that no product is trivial."""
    draw = torch.Generator(case.device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, device=case.device) * 0.02

    return Weights(
        normal(case.out_features, case.in_features).to(case.dtype),
        normal(case.rank, case.in_features),
        normal(case.out_features, case.rank),
    )


Inputs = list[tuple[Tensor, Tensor]]
"""Sets of x [M, K] and dy [M, N]."""


def inputs_of(case: Case, dtype: torch.dtype, sets: int = 1) -> Inputs:
    """Random inputs, the same for every row; x requires a gradient, as inside a model."""
    draw = torch.Generator(case.device).manual_seed(1)

    def normal(columns: int) -> Tensor:
        return torch.randn(case.rows, columns, generator=draw, device=case.device).to(dtype)

    return [
        (normal(case.in_features).requires_grad_(), normal(case.out_features)) for _ in range(sets)
    ]
