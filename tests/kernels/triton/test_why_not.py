"""The reasons, each by a call that has it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from peftlab_kernels.int8_format import Int8Weight
from peftlab_kernels.triton import backend
from peftlab_kernels.triton.backend import why_not
from peftlab_kernels.triton.configurations import Target, choose_tile, configurations, target_name


def call(**changed: Tensor) -> dict[str, Any]:
    tensors = {
        "x": torch.ones(3, 8), "weight": torch.ones(5, 8),
        "lora_a": torch.ones(2, 8), "lora_b": torch.ones(5, 2),
    }  # fmt: skip
    return tensors | changed


def test_nothing_is_in_the_way() -> None:
    assert why_not(**call()) is None
    assert why_not(torch.ones(3, 8), torch.ones(5, 8), None, None) is None


def int8_call(**changed: Any) -> dict[str, Any]:
    weight = Int8Weight(torch.ones(5, 8, dtype=torch.int8), torch.ones(5))
    return call() | {"weight": weight} | changed


def test_nothing_is_in_the_way_of_8_bits() -> None:
    assert why_not(**int8_call()) is None
    odd = Int8Weight(torch.ones(3, 7, dtype=torch.int8), torch.ones(3))
    assert why_not(torch.ones(2, 7), odd, None, None) is None


@pytest.mark.parametrize(
    ("codes", "scales", "words"),
    [
        (torch.ones(5, 8), torch.ones(5), "codes are torch.float32"),
        (torch.ones(5, 8, dtype=torch.int8), torch.ones(5, device="meta"), "scales is on meta"),
        (torch.ones(5, 8, dtype=torch.int8), torch.ones(5).double(), "scales is torch.float64"),
    ],
)
def test_reasons_against_8_bits(codes: Tensor, scales: Tensor, words: str) -> None:
    assert words in (why_not(**int8_call(weight=Int8Weight(codes, scales))) or "")


class Odd(Tensor):
    """A subclass, as DTensor and fake tensors are."""


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"x": torch.ones(3, 8, dtype=torch.float64)}, "x is torch.float64"),
        ({"weight": torch.ones(5, 8, dtype=torch.int8)}, "weight is torch.int8"),
        ({"lora_a": torch.ones(257, 8)}, "rank is 257"),
        ({"lora_b": torch.ones(5, 2, device="meta")}, "lora_b is on meta"),
        ({"x": torch.ones(3, 8, device="meta")}, "on meta"),
        ({"weight": torch.ones(5, 8).as_subclass(Odd)}, "weight is a Odd"),
    ],
)
def test_reasons(changed: dict[str, Tensor], words: str) -> None:
    reason = why_not(**call(**changed))
    assert reason is not None
    assert words in reason


def test_a_cpu_that_does_not_interpret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "interpreting", lambda: False)
    assert "needs a CUDA device" in (why_not(**call()) or "")


@pytest.mark.parametrize(
    ("capability", "name"),
    [((8, 0), "sm_80"), ((8, 6), "sm_86"), ((8, 9), "sm_86"), ((9, 0), "sm_90"),
     ((10, 0), "sm_80"), ((12, 0), "sm_120"), ((12, 1), "sm_120")],
)  # fmt: skip
def test_tables_of_capabilities(capability: tuple[int, int], name: str) -> None:
    assert target_name(*capability) == name


def test_tiles_follow_the_shape() -> None:
    """Large ones where there is work for every processor, small ones where there is not."""
    hopper = Target("sm_90", 132)
    table = configurations(hopper, torch.bfloat16)
    large = choose_tile(table.product_transposed, hopper, table.l2_cost, 8192, 14336)
    small = choose_tile(table.product_transposed, hopper, table.l2_cost, 64, 4096)
    assert (large.m, large.n) == (256, 128)
    assert small.m * small.n < large.m * large.n
