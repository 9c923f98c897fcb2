"""Whole Llama steps on a GPU: time in this process, memory in one of its own.

    python -m benchmarks.gpu.steps --memory-of CASE --out FILE [--dry-run]

is that process: it times nothing, and writes each row's memory as soon as it is known.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.clock import Clock
from benchmarks.gpu.layers import release, without_bitsandbytes
from benchmarks.gpu.limits import Ceilings, step_limit
from benchmarks.gpu.quick_interpreter import remember
from benchmarks.layers.counting import Watch
from benchmarks.layers.interleaving import noise, ratio, take_turns
from benchmarks.runs.llama import INT8_ROWS, ModelCase, ModelStep, Shape, base_model
from peftlab.measure.memory import weight_bytes

LLAMAS: Mapping[str, ModelCase] = {
    "8B": ModelCase(Shape(32, 4096, 14336, 32, 8, 128256), 2, 2048),
    "1B": ModelCase(Shape(16, 2048, 8192, 32, 8, 128256, tied=True), 4, 2048),
    "3B": ModelCase(Shape(28, 3072, 8192, 24, 8, 128256, tied=True), 2, 2048),
}
"""Llama-3.1-8B, Llama-3.2-1B and -3B in shape, with random weights."""

ROWS = ("ours", "PEFT", "PEFT, 16-bit adapters", "frozen base")
COMPILED = ("ours", "PEFT, compiled")
INT8 = ("ours, w8a8", "ours", "bnb+PEFT")
"""Blocks in 8 bits by each; `ours` beside them over bf16."""
LIMIT = 1.5
"""The target for a whole step, in multiples of its lower limit."""


def case_of(name: str, dropout: float, device: str, dry: bool) -> ModelCase:
    """The case of this name on a device; a dry run's takes no time.

    It traces and differentiates what is compiled, and leaves C++ to the compiled layers.
    """
    case = replace(LLAMAS[name], dropout=dropout, device=device)
    if not dry:
        return case
    tiny = Shape(1, 32, 48, 4, 2, 50)
    return replace(case, shape=tiny, rows=2, length=8, rank=4, compiler="aot_eager")


def measure(
    case: ModelCase, rows: Sequence[str], rounds: int, clock: Clock, ceilings: Ceilings
) -> dict[str, Any]:
    """Seconds of each row's step, interleaved; ratios, limit, losses; rows that failed."""
    base = base_model(case)
    steps: dict[str, ModelStep] = {}
    losses, failed = {}, {}
    for name in rows:
        try:
            step = ModelStep(name, case, base)
            losses[name] = float(step())
            steps[name] = step
        except Exception as error:  # out of memory, a compiler's: the other rows still run
            failed[name] = f"{type(error).__name__}: {error}"[:500]
            release()
    if not steps:
        raise RuntimeError(f"no row could run: {failed}")
    # Backward on the calling thread, as `peftlab train` has it, for every row.
    with torch.autograd.set_multithreading_enabled(False):
        seconds = take_turns(steps, rounds, warm_up=1, clock=clock)
    medians = {name: statistics.median(all_) for name, all_ in seconds.items()}
    limit = step_limit(case, ceilings)
    first = next(iter(steps))
    clock.forget()
    return {
        "case": asdict(case) | {"dtype": str(case.dtype)},
        "tokens": case.tokens,
        "rounds": rounds,
        "median_seconds": medians,
        "tokens_per_second": {name: case.tokens / median for name, median in medians.items()},
        "seconds": seconds,
        f"ratio_to_{first}": {name: asdict(ratio(seconds, name, first)) for name in steps},
        "limit_seconds": limit,
        "ratio_to_limit": {name: median / limit for name, median in medians.items()},
        "target": {"limit": LIMIT, "met": medians[first] <= LIMIT * limit},
        "noise": asdict(noise(seconds)),
        "first_loss": losses,
        "failed": failed,
    }


def write_memory(case: ModelCase, rows: Sequence[str], out: Path) -> None:
    """Memory of each row's second step: the allocator's peak; weights; bytes saved."""
    base = None
    result: dict[str, Any] = {"tokens": case.tokens, "rows": {}}
    for name in sorted(rows, key=lambda name: name not in INT8_ROWS):
        try:
            # Rows over 8 bits come first, without the base in memory.
            if base is None and name not in INT8_ROWS:
                base = base_model(case)
            result["rows"][name] = _memory_of(ModelStep(name, case, base))
        except Exception as error:  # running out of memory is recorded too
            result["rows"][name] = {"failed": f"{type(error).__name__}: {error}"[:500]}
        release()
        out.write_text(json.dumps(result))


def _memory_of(step: ModelStep) -> dict[str, int]:
    step()
    layers, whole = step.saved()
    gc.collect()
    figures = {
        "weight_bytes": weight_bytes(step.model),
        "saved_by_adapted_layers": layers,
        "saved_bytes": whole,
    }
    if not torch.cuda.is_available():
        with Watch() as watch:
            step()
        return figures | {"peak_bytes": watch.peak_live_bytes}
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    return figures | {"peak_allocated_bytes": peak, "peak_bytes": peak - figures["weight_bytes"]}


def main() -> None:
    """Run the child's command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--memory-of", choices=list(LLAMAS), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    device = "cpu" if given.dry_run else "cuda"
    if given.dry_run:
        remember()
    rows = without_bitsandbytes((*ROWS, "ours, w8a8", "bnb+PEFT"))
    write_memory(case_of(given.memory_of, 0.05, device, given.dry_run), rows, given.out)


if __name__ == "__main__":
    main()
