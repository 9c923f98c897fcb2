"""What adapted layers keep for backward, held to its bars at the full width of the layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.layers.saved_bytes import BARS, judge, llama, measure
from benchmarks.runs.llama import ModelCase, ModelStep, Shape, adapted_layers
from peftlab_kernels import autotune
from peftlab_kernels.backends import eager_int8_kernels

# NaN in fresh memory would count as an operator.
pytestmark = pytest.mark.poison_empty(False)


LAYERS, TOKENS = 2, 8


@pytest.fixture(scope="module")
def saved() -> dict[str, dict[str, int]]:
    return measure(llama(LAYERS, TOKENS))


def test_the_bars_are_met(saved: dict[str, dict[str, int]]) -> None:
    bars = judge(saved)
    assert len(bars) == len(BARS)
    assert [bar for bar in bars if not bar["met"]] == []


def test_the_layers_keep_x_once_h_and_a_bit_an_element(saved: dict[str, dict[str, int]]) -> None:
    d, ffn, rank = 1024, 2816, 16
    inputs = 3 * d + ffn  # of q k v together, o, gate and up together, and down
    masked = 6 * d + ffn
    a_token_and_block = 2 * inputs + masked // 8 + 7 * 2 * rank
    assert saved["ours"]["adapted_layers"] == LAYERS * TOKENS * a_token_and_block


def test_over_8_bits_the_layers_keep_codes_steps_h_and_a_bit_an_element(
    saved: dict[str, dict[str, int]],
) -> None:
    d, ffn, rank = 1024, 2816, 16
    inputs, steps, masked = 3 * d + ffn, 4 * 4, 6 * d + ffn
    # A CPU without bf16 units keeps h in fp32, as it computes it.
    native = eager_int8_kernels(torch.empty(0, 1, dtype=torch.bfloat16)).native
    for name, h_bytes in (
        ("ours, w8a8", 2 if native else 4),
        ("ours, w8a8, fp32 activations", 4),
    ):
        a_token_and_block = inputs + steps + masked // 8 + 7 * h_bytes * rank
        assert saved[name]["adapted_layers"] == LAYERS * TOKENS * a_token_and_block, name


def test_a_bar_can_be_missed(saved: dict[str, dict[str, int]]) -> None:
    worse = saved | {"ours": saved["PEFT"]}
    assert not judge(worse)[0]["met"]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_whole_steps_keep_less_compute_no_more_and_move_less(dropout: float) -> None:
    case = ModelCase(Shape(2, 64, 176, 4, 2, 200), 2, 24, rank=4, dropout=dropout)
    # In bf16 throughout, as on a processor that multiplies it: counts of one path.
    with autotune.replay({"bfloat16 x @ W.T": "native", "bfloat16 dy @ W": "native"}):
        counts = {
            name: ModelStep(name, case).counts()
            for name in ("ours", "ours, 16-bit adapters", "PEFT", "PEFT, 16-bit adapters")
        }
    for ours, peft in (("ours", "PEFT"), ("ours, 16-bit adapters", "PEFT, 16-bit adapters")):
        # Without dropout, and where nothing is cast, PEFT keeps the same: x and h.
        assert counts[ours].saved_bytes <= counts[peft].saved_bytes
        assert counts[ours].peak_live_bytes <= counts[peft].peak_live_bytes
        assert counts[ours].flops <= counts[peft].flops
        if not dropout:  # masking in numpy is not seen
            assert counts[ours].bytes_moved < counts[peft].bytes_moved


def test_layers_are_found_fused_or_not() -> None:
    case = ModelCase(Shape(1, 32, 48, 4, 2, 50), 1, 8, rank=4)
    for name, expected in (("ours", 7), ("PEFT", 7), ("frozen base", 0)):
        model: Any = ModelStep(name, case).model
        assert len(list(adapted_layers(model))) == expected
