"""One LoRA layer, forward and backward, and its peers on a CPU, interleaved.

    python -m benchmarks.layers.lora_linear_pairs [--int8] [--case NAME ...] [--pairs 9] [--tiny]

The cases are those of this CPU's kind unless they are named: `bf16`, `bf16-dropout` where the CPU
multiplies bf16; `fp32`, `bf16-weights` and, once and small, `bf16-hopeless` where it does not.
Printed are medians, ratios within rounds with their smallest and largest, the noise, and the bars;
OUT also has each row's counts. The exit code does not depend on the bars, which are times.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.layers.counting import Counts
from benchmarks.layers.interleaving import Bar, summary, table, take_turns
from benchmarks.layers.layer_case import Case, weights_of
from benchmarks.layers.peers import LayerStep, step_of
from benchmarks.result_files import RESULTS, cpu_kind, has_bf16_units, write_result
from peftlab.measure.allocator import keep_large_buffers
from peftlab_kernels import autotune


@dataclass(frozen=True, slots=True)
class Comparison:
    """A layer, the rows that are interleaved on it, and the expected ratios of their times."""

    case: Case
    rows: tuple[str, ...]
    bars: tuple[Bar, ...] = ()
    rounds: int | None = None


_BF16 = Case(2048, 4096, 4096)
_BF16_ROWS = (
    "ours", "PEFT", "PEFT, 16-bit adapters", "plain addmm_", "frozen base",
    "ours, 16-bit adapters", "PEFT, compiled", "PEFT, fp32",
)  # fmt: skip
_FP32 = Case(1024, 2048, 2048, dtype=torch.float32)

COMPARISONS: Mapping[str, Comparison] = {
    "bf16": Comparison(
        _BF16, _BF16_ROWS,
        (Bar("PEFT", "ours", 1.2, at_most=False), Bar("ours", "frozen base", 1.06)),
    ),
    "bf16-dropout": Comparison(
        replace(_BF16, dropout=0.1), _BF16_ROWS,
        (Bar("PEFT", "ours", 1.3, at_most=False), Bar("ours", "frozen base", 1.15)),
    ),
    "fp32": Comparison(
        _FP32, ("ours", "PEFT", "plain addmm_", "frozen base", "PEFT, compiled"),
        (Bar("PEFT", "ours", 1.08, at_most=False), Bar("ours", "frozen base", 1.08)),
    ),
    "bf16-weights": Comparison(
        replace(_FP32, dtype=torch.bfloat16), ("ours, fp32 activations", "PEFT, fp32", "ours"),
        (Bar("ours, fp32 activations", "PEFT, fp32", 1.03),),
    ),
    "bf16-hopeless": Comparison(
        Case(128, 1024, 1024), ("ours, fp32 activations", "PEFT"), rounds=1,
    ),
}  # fmt: skip
_INT8_ROWS = (
    "ours, w8a8", "bnb+PEFT", "frozen base", "integer products alone", "ours, w8a16",
    "bnb+PEFT, threshold 0", "PEFT", "ours",
)  # fmt: skip
INT8: Mapping[str, Comparison] = {
    "int8": Comparison(
        _BF16, _INT8_ROWS,
        (
            Bar("bnb+PEFT", "ours, w8a8", 1.7, at_most=False),
            Bar("ours, w8a8", "frozen base", 1.0),
            Bar("ours, w8a8", "integer products alone", 1.4),
        ),
    ),
    "int8-dropout": Comparison(replace(_BF16, dropout=0.1), _INT8_ROWS),
    "int8-fp32": Comparison(
        replace(_BF16, dtype=torch.float32), _INT8_ROWS,
        (Bar("bnb+PEFT", "ours, w8a8", 2.8, at_most=False),),
    ),
    "int8-fp32-dropout": Comparison(
        replace(_BF16, dtype=torch.float32, dropout=0.1), _INT8_ROWS
    ),
    "int8-avx2": Comparison(
        _FP32, _INT8_ROWS,
        (
            Bar("PEFT", "ours, w8a8", 1.5, at_most=False),
            Bar("ours, w8a8", "frozen base", 1.0),
            Bar("ours, w8a16", "PEFT", 1.05),
            Bar("ours, w8a8", "integer products alone", 1.7),
        ),
    ),
}  # fmt: skip
"""Over a base in 8 bits, with --int8."""
INT8_OF_KIND = {
    True: ("int8", "int8-dropout", "int8-fp32", "int8-fp32-dropout"), False: ("int8-avx2",),
}  # fmt: skip
OF_KIND = {True: ("bf16", "bf16-dropout"), False: ("fp32", "bf16-weights", "bf16-hopeless")}


def tiny(comparison: Comparison) -> Comparison:
    """The same rows on a layer that takes no time."""
    case = replace(comparison.case, rows=32, in_features=64, out_features=48, rank=4)
    return replace(comparison, case=case)


def compare(comparison: Comparison, pairs: int) -> dict[str, Any]:
    """Run one comparison: times, counts, and whether the bars were met."""
    case = comparison.case
    weights = weights_of(case)
    steps, failed = {}, {}
    for name in comparison.rows:
        try:
            steps[name] = step_of(name, case, weights)
            steps[name]()
        except Exception as error:  # a compiler's, say: one peer less
            if name.startswith("ours"):
                raise
            steps.pop(name, None)
            failed[name] = f"{type(error).__name__}: {error}"[:500]
            print(f"  {name} failed: {failed[name]}")
    seconds = take_turns(steps, comparison.rounds or pairs)
    print(f"{case}, {torch.get_num_threads()} threads, on {cpu_kind()}")
    print(table(seconds, comparison.bars), flush=True)
    return {
        "case": asdict(case) | {"dtype": str(case.dtype)},
        **summary(seconds, comparison.bars),
        "failed": failed,
        "counts": {name: asdict(counts) for name, counts in _counts(steps).items()},
    }


def _counts(steps: Mapping[str, LayerStep]) -> dict[str, Counts]:
    # Compiled code dispatches nothing that could be counted.
    return {name: step.counts() for name, step in steps.items() if "compiled" not in name}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    known = {**COMPARISONS, **INT8}
    parser.add_argument("--case", action="append", choices=sorted(known))
    parser.add_argument("--int8", action="store_true", help="the cases over a base in 8 bits")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int, help="default: what torch takes")
    parser.add_argument("--json", type=Path, help=f"default: under {RESULTS.name}/")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that all runs")
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    keep_large_buffers()  # for every row alike
    results = {}
    of_kind = INT8_OF_KIND if given.int8 else OF_KIND
    for name in given.case or of_kind[has_bf16_units()]:
        comparison = tiny(known[name]) if given.tiny else known[name]
        results[name] = compare(comparison, given.pairs)
    what = "int8_linear" if given.int8 else "lora_linear"
    out = given.json or RESULTS / f"{what}--{cpu_kind()}.json"
    write_result(out, {"comparisons": results, "choices": autotune.answers()})


if __name__ == "__main__":
    main()
