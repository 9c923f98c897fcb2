"""All measurements of the LoRA kernels on a GPU, in one command of under ten minutes.

    PYTHONPATH=.:kernels python -m benchmarks.gpu.suite --out DIR [--minutes 9] [--dry-run]

Needs torch, Triton, Transformers and PEFT, and bitsandbytes for its rows; peftlab need not be
installed. First the correctness of the kernels, then layers of Llama-3.1-8B and whole steps, the
most important first; cases that the time does not suffice for are listed. Results are written after
every case: `correctness--<gpu>.json`, `lora_linear--<gpu>.json`, `llama_step--<gpu>.json`,
`llama_memory--<gpu>.json`. Exit code 1 if a kernel is wrong or a case could not be measured.

`--dry-run` runs the same code on a CPU with tiny shapes and Triton's interpreter
(TRITON_INTERPRET=1): its times are meaningless, but it fails where the suite would.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import layers as gpu_layers
from benchmarks.gpu import steps as gpu_steps
from benchmarks.gpu.clock import Budget, Clock
from benchmarks.gpu.correctness import check_all
from benchmarks.gpu.limits import Ceilings, measure_ceilings
from benchmarks.gpu.quick_interpreter import remember
from benchmarks.gpu.targets import OVER_8_BITS, SHAPES, seven_layers, sizes
from benchmarks.gpu.warm_up import compile_ahead
from benchmarks.result_files import gpu_kind, write_result
from peftlab_kernels import autotune

ROUNDS = 10
"""Five blocks of ABBA."""


@dataclass(slots=True)
class Suite:
    """One run: its folder, its time, its problems so far."""

    out: Path
    budget: Budget
    dry: bool
    device: str
    clock: Clock
    ceilings: Ceilings = field(default=Ceilings(1.0, 1.0))
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def note(self, result: str, key: str, value: Any) -> None:
        """Add to a result, and write its file as it stands."""
        whole = self.results.setdefault(result, {})
        whole[key] = value
        path = self.out / f"{result}--{'dry-run' if self.dry else gpu_kind()}.json"
        shared = {
            "ceilings": asdict(self.ceilings), "choices": autotune.answers(),
            "problems": self.problems, "skipped": self.skipped,
        }  # fmt: skip
        write_result(path, {**whole, **shared})

    def note_failures(self, case: str, failed: Mapping[str, str]) -> None:
        """Rows that could not be measured: ours are problems, a peer may lack the memory."""
        for row, reason in failed.items():
            (self.problems if row.startswith("ours") else self.skipped).append(
                f"{case}, {row}: {reason}"
            )

    def attempt(self, what: str, seconds: float, run: Callable[[], object]) -> None:
        """Run a case if it can still end in time; after any error the next case still runs."""
        if not self.budget.allows(seconds):
            self.skipped.append(what)
            say(f"left out, {self.budget.left:.0f} s are left: {what}")
            return
        started = time.monotonic()
        try:
            run()
        except Exception as error:
            self.problems.append(f"{what}: {type(error).__name__}: {error}"[:500])
            traceback.print_exc()
        gpu_layers.release()
        say(f"{what}: {time.monotonic() - started:.1f} s, {self.budget.left:.0f} s are left")


def correctness(suite: Suite) -> None:
    """Check the kernels; every wrong one is a problem."""
    # At most a third of the time, in case compiling takes unusually long.
    share = Budget(suite.budget.left / 3)
    result = check_all(suite.device, share, suite.dry)
    suite.problems += result["failures"]
    for failure in result["failures"]:
        say(f"WRONG {failure}")
    say(f"{len(result['checks'])} checks, {len(result['failures'])} failures")
    suite.note("correctness", "correctness", result)


def seven(
    suite: Suite, rows: int, rank: int, dropout: float, names: tuple[str, ...], rounds: int
) -> None:
    """The seven layers at one size, shape by shape, and their sum."""
    shapes = {}
    for shape in SHAPES:
        case = gpu_layers.layer_case(shape, rows, rank, dropout, suite.device, suite.dry)
        shapes[shape] = gpu_layers.measure(
            case, names, rounds, suite.clock, suite.ceilings, gpu_kind()
        )
        gpu_layers.release()
        say("  " + gpu_layers.line(case, shapes[shape]))
        suite.note_failures(str(case), shapes[shape]["failed"])
        what = f"M={rows} r={rank} p={dropout:g}"
        if "PEFT, compiled" in names:
            what += " compiled"
        if names[1] in OVER_8_BITS:
            what += " over 8 bits"
        whole = {"seven": seven_layers(shapes)} if len(shapes) == len(SHAPES) else {}
        suite.note("lora_linear", what, {"shapes": shapes, **whole})
    for target in whole["seven"]["targets"]:
        say(
            f"  seven layers: {target['row']} / {target['to']} = "
            f"{target['measured']['median']:.3f}, target {target['limit']}, met: {target['met']}"
        )


def step(suite: Suite, name: str, dropout: float, rows: tuple[str, ...], rounds: int) -> None:
    """A whole step of one Llama."""
    case = gpu_steps.case_of(name, dropout, suite.device, suite.dry)
    result = gpu_steps.measure(case, rows, rounds, suite.clock, suite.ceilings)
    suite.note_failures(f"step {name}", result["failed"])
    what = f"{name} p={dropout:g}{' compiled' if 'PEFT, compiled' in rows else ''}"
    what += " over 8 bits" * (rows[0] in OVER_8_BITS)
    suite.note("llama_step", what, result)
    shown = ", ".join(f"{row} {all_ * 1e3:.1f}" for row, all_ in result["median_seconds"].items())
    say(f"  {what}, {case.tokens} tokens, ms: limit {result['limit_seconds'] * 1e3:.1f}, {shown}")


def memory(suite: Suite, name: str) -> None:
    """A whole step's memory, in a process that does nothing else."""
    part = suite.out / "memory.part.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu.steps",
        "--memory-of",
        name,
        "--out",
        str(part),
    ]
    if suite.dry:
        command.append("--dry-run")
    try:
        subprocess.run(command, check=True, timeout=max(20.0, suite.budget.left))
    finally:
        if part.exists():  # also of a process that was stopped
            suite.note("llama_memory", name, json.loads(part.read_text()))
            part.unlink()
            for row, figures in suite.results["llama_memory"][name]["rows"].items():
                peak = figures.get("peak_bytes")
                say(f"  {name}, {row}: " + (f"{peak / 2**30:.2f} GiB" if peak else str(figures)))


Entry = tuple[str, float, Callable[[], object]]


def plan(suite: Suite) -> Iterator[Entry]:
    """The cases, the most important first, each with the seconds it may take."""

    def layers(
        size: tuple[int, int, float], names: tuple[str, ...], rounds: int, seconds: float = 25
    ) -> Entry:
        rounds = 1 if suite.dry else rounds
        return (
            f"layers M={size[0]} r={size[1]} p={size[2]:g}, {len(names)} rows"
            + " over 8 bits" * (names[1] in OVER_8_BITS), seconds,
            lambda: seven(suite, *size, names, rounds),
        )  # fmt: skip

    def whole(
        name: str, p: float, seconds: float, names: tuple[str, ...] = gpu_steps.ROWS
    ) -> Entry:
        rounds = 1 if suite.dry else 5
        words = f"step {name} p={p:g}, {len(names)} rows"
        words += " over 8 bits" * (names[0] in OVER_8_BITS)
        return words, seconds, lambda: step(suite, name, p, names, rounds)

    first, second, *others = sizes(suite.dry)
    int8 = gpu_layers.without_bitsandbytes(gpu_layers.INT8)
    yield layers(first, gpu_layers.ROWS, ROUNDS)
    yield layers(first, int8, ROUNDS)
    yield layers(second, gpu_layers.ROWS, ROUNDS)
    yield layers(second, int8, ROUNDS)
    yield whole("8B", 0.0, 70)
    yield "memory 8B", 60, lambda: memory(suite, "8B")
    for size in others[:5]:
        yield layers(size, gpu_layers.FEWER, 6)
    yield layers(first, gpu_layers.COMPILED, ROUNDS, 60)
    if not suite.dry:  # whose models are all of one size
        yield whole("1B", 0.0, 30)
    yield whole("1B", 0.0, 40, gpu_layers.without_bitsandbytes(gpu_steps.INT8))
    for size in others[5:]:
        yield layers(size, gpu_layers.FEWER, 6)
    yield whole("8B", 0.05, 70)
    if not suite.dry:
        yield "memory 1B", 30, lambda: memory(suite, "1B")
        yield whole("3B", 0.0, 45)
    yield whole("1B", 0.0, 120, gpu_steps.COMPILED)


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--only", default="", help="cases whose names contain this")
    parser.add_argument("--without", default="\0", help="no cases whose names contain this")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on a CPU")
    given = parser.parse_args()
    if given.dry_run and os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("a dry run is for Triton's interpreter: set TRITON_INTERPRET=1")
    if not given.dry_run and not torch.cuda.is_available():
        parser.error("no CUDA device; use --dry-run to run without one")
    given.out.mkdir(parents=True, exist_ok=True)
    # What is fastest is measured here, and kept with the results.
    os.environ[autotune.VARIABLE] = str(given.out / "kernel_choices.json")
    device = "cpu" if given.dry_run else "cuda"
    suite = Suite(given.out, Budget(60 * given.minutes), given.dry_run, device, Clock(device))
    say(f"{gpu_kind()}, torch {torch.__version__}, {given.minutes:g} minutes")
    if suite.dry:
        remember()
        say("A dry run: the numbers mean nothing.")
    say(compile_ahead(suite.budget.left / 5, dry=suite.dry))
    suite.ceilings = measure_ceilings(suite.clock, device, suite.dry)
    say(
        f"measured: {suite.ceilings.flops / 1e12:.0f} TFLOP/s in bf16, "
        f"{suite.ceilings.bandwidth / 1e12:.2f} TB/s"
    )
    suite.attempt("correctness", 0, lambda: correctness(suite))
    for what, seconds, run in plan(suite):
        if given.only in what and given.without not in what:
            suite.attempt(what, 1 if suite.dry else seconds, run)
    for name in list(suite.results):
        suite.note(name, "complete", not suite.skipped)
    for problem in suite.problems:
        say(f"PROBLEM {problem}")
    say(f"{len(suite.problems)} problems; left out: {', '.join(suite.skipped) or 'nothing'}")
    return 1 if suite.problems else 0


def say(line: str) -> None:
    """Print a line of the log."""
    print(line, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
