"""One LoRA layer as PEFT makes it, forward and backward, by the rows of `peers.PEERS`.

See `conftest.py` for how to run the suites.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch

from benchmarks.layers.layer_case import Case, weights_of
from benchmarks.layers.peers import PEERS, step_of
from benchmarks.result_files import has_bf16_units

HOPELESS_IN_BF16 = ("ours, 16-bit adapters", "PEFT, autocast", "PEFT, 16-bit adapters")
"""Rows in bf16 throughout: on a processor without bf16 they would run for minutes."""


@pytest.mark.parametrize("dropout", [0.0, 0.1], ids=["p=0", "p=0.1"])
@pytest.mark.parametrize("name", PEERS)
def test_layer(benchmark: Any, name: str, dropout: float, small: bool) -> None:
    """Both passes; in bf16 where the processor multiplies it, else fp32 over bf16 and fp32."""
    units = has_bf16_units()
    if name in HOPELESS_IN_BF16 and not units:
        pytest.skip("this processor does not multiply bf16")
    rows, features = (256, 1024) if small else (2048, 4096) if units else (1024, 2048)
    keeps_16_bits = units or name == "ours, fp32 activations"
    dtype = torch.bfloat16 if keeps_16_bits else torch.float32
    case = Case(rows, features, features, dropout=dropout, dtype=dtype)
    step = step_of(name, case, weights_of(case))
    benchmark.group = f"layer, M={rows} {features}>{features} p={dropout:g}"
    if "compiled" not in name:
        benchmark.extra_info.update(asdict(step.counts()))
    benchmark(step)
