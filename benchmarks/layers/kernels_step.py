"""A whole training step of a small Llama with LoRA on every linear layer of its blocks.

See `conftest.py` for how to run the suites; `llama_step_pairs.py` is the comparison for the record.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from benchmarks.result_files import has_bf16_units
from benchmarks.runs.llama import ModelCase, ModelStep, Shape
from peftlab.measure.memory import weight_bytes

ROWS = {
    True: (
        "ours", "ours, 16-bit adapters", "PEFT", "PEFT, 16-bit adapters", "PEFT, compiled",
        "PEFT, fp32", "frozen base",
    ),
    False: ("ours, fp32 activations", "PEFT, fp32"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS[has_bf16_units()])
def test_llama_step(benchmark: Any, name: str, small: bool) -> None:
    """Forward, loss, backward and AdamW."""
    shape = Shape(2, 256, 704, 4, 4, 1000) if small else Shape(4, 1024, 2816, 16, 16, 8000)
    case = ModelCase(shape, 1, 128 if small else 512)
    step = ModelStep(name, case)
    benchmark.group = f"llama step, d={shape.hidden}, {case.tokens} tokens"
    benchmark.extra_info["weight_bytes"] = weight_bytes(step.model)
    if "compiled" not in name:
        benchmark.extra_info.update(asdict(step.counts()))
    benchmark(step)
