"""The operator `lora_linear`, the plain expression, and a plain autograd Function.

See `conftest.py` for how to run the suites.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.layers.bare_layers import PlainAddmm
from benchmarks.layers.counting import count
from benchmarks.layers.layer_case import SCALING, Case, weights_of
from benchmarks.result_files import has_bf16_units
from peftlab_kernels.functional import lora_linear

Operator = Callable[..., Tensor]


def expression(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, dropout: float) -> Tensor:
    """As one would write it, the adapter in x's dtype."""
    h = F.dropout(x, dropout) @ a.to(x.dtype).T
    return F.linear(x, weight) + h @ b.to(x.dtype).T * SCALING


def ours(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, dropout: float) -> Tensor:
    """The operator of `peftlab_kernels`."""
    return lora_linear(x, weight, a, b, scaling=SCALING, dropout=dropout)


def frozen(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, dropout: float) -> Tensor:
    """The base product alone."""
    return F.linear(x, weight)


OPERATORS: dict[str, Operator] = {
    "lora_linear": ours,
    "plain_addmm": PlainAddmm.apply,
    "expression": expression,
    "frozen": frozen,
}


@pytest.fixture(params=[0.0, 0.1], ids=["p=0", "p=0.1"])
def case(request: pytest.FixtureRequest, small: bool) -> Case:
    """The layer, in the sizes for this kind of processor."""
    dtype = torch.bfloat16 if has_bf16_units() else torch.float32
    if small:
        return Case(256, 1024, 1024, dropout=request.param, dtype=dtype)
    rows, features = (2048, 4096) if has_bf16_units() else (1024, 2048)
    return Case(rows, features, features, dropout=request.param, dtype=dtype)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("passes", ["forward", "forward_backward"])
def test_lora_linear(benchmark: Any, passes: str, name: str, case: Case) -> None:
    """Forward, with what it saves for backward; or both passes."""
    weight, a, b = weights_of(case)
    leaves = [torch.randn(case.rows, case.in_features).to(case.dtype), a, b]
    x, a, b = (leaf.requires_grad_() for leaf in leaves)
    if name == "frozen":
        leaves = [x]

    def forward() -> Tensor:
        return OPERATORS[name](x, weight, a, b, case.dropout)

    dy = torch.randn(case.rows, case.out_features).to(case.dtype)

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(forward(), leaves, dy)

    benchmark.group = f"lora_linear {passes}, {case}"
    benchmark.extra_info.update(asdict(count(forward, [weight])))
    benchmark(forward if passes == "forward" else both)
