"""The bytes that LoRA layers, and a whole step, save for backward.

    python -m benchmarks.layers.saved_bytes [--json OUT] [--tokens 512] [--layers 8]

A random Llama (d=1024, FFN 2816, LoRA r=16 on every linear layer, p=.05). The bytes are the same on
every CPU. Fails (exit code 1) where a bar is missed.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.result_files import write_result
from benchmarks.runs.llama import INT8_ROWS, ModelCase, ModelStep, Shape

BARS = (
    ("ours", "PEFT", 0.25),
    ("ours", "PEFT, 16-bit adapters", 0.45),
    ("ours", "PEFT, fp32", 0.40),
    ("ours, fp32 activations", "PEFT, fp32", 0.40),
    ("ours, w8a8", "bnb+PEFT", 0.20),
    ("ours, w8a8, fp32 activations", "bnb+PEFT, fp32 activations", 0.15),
)
"""The largest share of a peer's bytes that a row's adapted layers may save."""

ROWS = (
    "ours", "ours, fp32 activations", "PEFT", "PEFT, 16-bit adapters", "PEFT, fp32", *INT8_ROWS,
)  # fmt: skip


def llama(layers: int, tokens: int) -> ModelCase:
    """The measured model; the ratios depend on neither argument."""
    return ModelCase(Shape(layers, 1024, 2816, 16, 16, 8000), 1, tokens, dropout=0.05)


def measure(case: ModelCase) -> dict[str, dict[str, int]]:
    """Bytes saved by the adapted layers and by the whole step, by row."""
    saved = {}
    for name in ROWS:
        layers, step = ModelStep(name, case).saved()
        saved[name] = {"adapted_layers": layers, "whole_step": step}
    return saved


def judge(saved: Mapping[str, Mapping[str, int]]) -> list[dict[str, Any]]:
    """Each bar with the measured ratio."""
    judged = []
    for row, peer, limit in BARS:
        ratio = saved[row]["adapted_layers"] / saved[peer]["adapted_layers"]
        judged.append(
            {"row": row, "to": peer, "limit": limit, "measured": ratio, "met": ratio <= limit}
        )
    return judged


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    case = llama(given.layers, given.tokens)
    saved = measure(case)
    bars = judge(saved)
    for name, kept in saved.items():
        print(
            f"{name:24} adapted layers {kept['adapted_layers'] / 2**20:8.1f} MiB"
            f"   whole step {kept['whole_step'] / 2**20:8.1f} MiB"
        )
    for bar in bars:
        print(
            f"{'met   ' if bar['met'] else 'MISSED'} {bar['row']} / {bar['to']} = "
            f"{bar['measured']:.3f}, bar <= {bar['limit']}"
        )
    if given.json:
        described = asdict(case) | {"dtype": str(case.dtype)}
        write_result(given.json, {"case": described, "saved_bytes": saved, "bars": bars})
    return 0 if all(bar["met"] for bar in bars) else 1


if __name__ == "__main__":
    raise SystemExit(main())
