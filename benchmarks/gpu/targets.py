"""The targets for an H100 on the seven layers of Llama-3.1-8B's block, and whether they are met."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks.layers.interleaving import Bar

SHAPES: Mapping[str, tuple[int, int, int]] = {
    "gate_proj, up_proj": (4096, 14336, 2),
    "q_proj, o_proj": (4096, 4096, 2),
    "down_proj": (14336, 4096, 1),
    "k_proj, v_proj": (4096, 1024, 2),
}
"""in_features, out_features and the number of each: seven in all."""

SIZES = (
    (8192, 16, 0.0), (8192, 16, 0.05), (4096, 16, 0.05), (1024, 16, 0.05), (16384, 16, 0.05),
    (8192, 64, 0.05), (8192, 8, 0.05), (4096, 16, 0.0), (1024, 16, 0.0), (2048, 16, 0.0),
    (16384, 16, 0.0), (8192, 64, 0.0), (8192, 8, 0.0),
)  # fmt: skip
"""M, r and p, the most important first; the targets are for the first two."""


def sizes(dry: bool) -> tuple[tuple[int, int, float], ...]:
    """`SIZES`; a dry run's layers are tiny at all of them: it takes one of each kind of case."""
    return (*SIZES[:2], (8192, 64, 0.05)) if dry else SIZES


OURS_IN_TRITON = {"ours, epilogue": "epilogue", "ours, cublas": "cublas"}
"""Rows by the base product they take."""

OVER_8_BITS = {"ours, w8a8": "w8a8", "ours, w8a16": "w8a16"}
"""Rows over a weight in 8 bits by their arithmetic."""

TARGETS = (
    Bar("PEFT, 16-bit adapters", "ours", 1.25, at_most=False),
    Bar("PEFT", "ours", 1.6, at_most=False),
    Bar("ours", "frozen base", 1.15),
    Bar("PEFT, 16-bit adapters", "ours, w8a8", 1.8, at_most=False),
    Bar("bnb+PEFT", "ours, w8a8", 2.0, at_most=False),
    Bar("ours, w8a8", "frozen base", 1.0),
)


def seven_layers(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """All layers of a block together, from `layers.measure`'s result for each of `SHAPES`.

    `ours` is the faster of our two Triton rows, shape by shape, as the choice by measurement takes.
    """
    rounds: dict[str, list[float]] = {}
    for shape, result in results.items():
        for name, seconds in (result["seconds"] | _best_of_ours(result)).items():
            total = rounds.setdefault(name, [0.0] * len(seconds))
            layers = SHAPES[shape][2]
            rounds[name] = [a + layers * b for a, b in zip(total, seconds, strict=True)]
    ran = [set(result["seconds"] | _best_of_ours(result)) for result in results.values()]
    rounds = {name: all_ for name, all_ in rounds.items() if all(name in rows for rows in ran)}
    limit = sum(SHAPES[s][2] * float(result["limit_seconds"]) for s, result in results.items())
    medians = {name: statistics.median(all_) for name, all_ in rounds.items()}
    return {
        "median_seconds": medians,
        "limit_seconds": limit,
        "ratio_to_limit": {name: median / limit for name, median in medians.items()},
        "fusion_gain": fusion_gains(medians),
        "targets": [judged for bar in TARGETS if (judged := bar.judge(rounds)) is not None],
    }


def fusion_gains(medians: Mapping[str, float]) -> dict[str, float]:
    """By PEFT's rows: the share of their time above the base that our best row saves."""
    ours = [medians[name] for name in OURS_IN_TRITON if name in medians]
    base = medians.get("frozen base")
    if not ours or base is None:
        return {}
    return {
        name: (taken - min(ours)) / (taken - base)
        for name, taken in medians.items()
        if name.startswith("PEFT") and taken > base
    }


def _best_of_ours(result: Mapping[str, Any]) -> dict[str, list[float]]:
    ran = [name for name in OURS_IN_TRITON if name in result["seconds"]]
    if not ran:
        return {}
    return {"ours": result["seconds"][min(ran, key=lambda name: result["median_seconds"][name])]}
