"""The fastest tile shapes on this GPU, pass by pass, for the kernels' tables.

    PYTHONPATH=.:kernels python -m benchmarks.gpu.sweep --out DIR [--minutes 3] [--only TEXT]
        [--dry-run]

Each pass of a LoRA layer alone, on shapes of Llama-3.1-8B, by every candidate, with cuBLAS beside
the products. Each time is printed with its lower limit, from two measured rates. Results are
compared with those of the configuration in the tables; a candidate that differs is not timed.
Writes `tiles--<gpu>.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.clock import Budget, Clock
from benchmarks.gpu.layers import release
from benchmarks.gpu.limits import Ceilings, measure_ceilings
from benchmarks.gpu.quick_interpreter import remember
from benchmarks.gpu.sweep_passes import SIZES, TINY, Pass, passes
from benchmarks.result_files import gpu_kind, write_result

VISITS = 3
REPEATS = 4


def _in_a_graph(run: Callable[[], object]) -> Callable[[], object]:
    """Some calls as one CUDA graph, so that the GPU's work is timed and not the launches."""
    if not torch.cuda.is_available():
        return run
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(REPEATS):
            run()
    return graph.replay


def host_seconds(run: Callable[[], object]) -> float:
    """The time that a call takes to launch."""
    times = []
    rounds, calls = (5, 10) if torch.cuda.is_available() else (1, 1)
    for _ in range(rounds):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(calls):
            run()
        times.append((time.perf_counter() - started) / calls)
    return statistics.median(times)


def measure(what: Pass, clock: Clock, ceilings: Ceilings) -> dict[str, Any]:
    """Microseconds of the table's own choice, every candidate and the peers; what failed."""
    expected = tuple(t.double() for t in what.run(None))
    runs: dict[str, Callable[[], object]] = {"table": partial(what.run, None)}
    failed = {}
    for candidate in what.candidates:
        name = "x".join(str(int(v)) for v in asdict(candidate).values())
        try:
            results = what.run(candidate)
            for got, want in zip(results, expected, strict=True):
                error = float((got.double() - want).norm() / want.norm())
                if not error < 1e-2:
                    raise ArithmeticError(f"differs from the table's own by {error:.1e}")
        except Exception as error:  # out of shared memory, or a compiler's: recorded
            failed[name] = f"{type(error).__name__}: {error}"[:200]
            continue
        runs[name] = partial(what.run, candidate)
    for name, peer in what.peers:
        try:
            peer()
            runs[name] = peer
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"[:200]
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    visits, calls = (VISITS, REPEATS) if torch.cuda.is_available() else (1, 1)
    replays = {name: _in_a_graph(run) for name, run in runs.items()}
    for visit in range(visits):
        for name in runs if visit % 2 == 0 else reversed(runs):
            seconds[name].append(clock(replays[name]) / calls)
    host = host_seconds(runs["table"])
    clock.forget()
    micros = {name: round(statistics.median(all_) * 1e6, 2) for name, all_ in seconds.items()}
    least = what.least(ceilings) * 1e6
    return {
        "least": round(least, 2),
        "launches": round(host * 1e6, 1),
        "micros": dict(sorted(micros.items(), key=lambda item: item[1])),
        "failed": failed,
    }


def line(what: Pass, measured: dict[str, Any]) -> str:
    """The table's time, the peers' and the three fastest candidates."""
    micros = measured["micros"]
    peers = [name for name, _ in what.peers if name in micros]
    best = [name for name in micros if name != "table" and name not in peers][:3]
    size = what.size
    words = ", ".join(f"{name} {micros[name]:.1f}" for name in ("table", *peers, *best))
    failed = f"; {len(measured['failed'])} failed" if measured["failed"] else ""
    return (
        f"{what.name} {size.m} {size.k}>{size.n} r={size.r}: least {measured['least']:.1f}, "
        f"launched in {measured['launches']:.0f}, {words}{failed}"
    )


def compile_ahead(dry: bool, only: str) -> None:
    """Every candidate once, on all cores, into Triton's cache."""
    number = 1 if dry else max(1, min(14, (os.cpu_count() or 2) - 2))
    command = [sys.executable, "-m", "benchmarks.gpu.sweep", "--out", ".", "--only", only]
    command += ["--dry-run"] * dry
    running = [
        subprocess.Popen([*command, "--part", f"{part}/{number}"], stderr=subprocess.DEVNULL)
        for part in range(number)
    ]
    for process in running:
        process.wait()


def compile_part(part: str, only: str, device: str, dry: bool) -> None:
    """One process's share of the candidates."""
    mine, number = map(int, part.split("/"))
    # Sizes mostly share their kernels: a candidate is the same process's at all of them.
    shares: dict[Any, int] = {}
    for size in TINY if dry else SIZES:
        for what in passes(size, device):
            for candidate in what.candidates[: 1 if dry else None]:
                share = shares.setdefault((what.name, candidate), len(shares))
                if only in what.name and share % number == mine:
                    with contextlib.suppress(Exception):
                        what.run(candidate)
        release()


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--only", default="", help="passes whose names contain this")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on a CPU")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    given = parser.parse_args()
    device = "cpu" if given.dry_run else "cuda"
    if given.dry_run:
        remember()
    if given.part:
        compile_part(given.part, given.only, device, given.dry_run)
        return 0
    budget, clock = Budget(60 * given.minutes), Clock(device)
    started = time.monotonic()
    compile_ahead(given.dry_run, given.only)
    ceilings = measure_ceilings(clock, device, given.dry_run)
    print(
        f"compiled in {time.monotonic() - started:.0f} s; {ceilings.flops / 1e12:.0f} TFLOP/s, "
        f"{ceilings.bandwidth / 1e12:.2f} TB/s",
        flush=True,
    )
    results: dict[str, Any] = {}
    left_out = []
    for size in TINY if given.dry_run else SIZES:
        for what in passes(size, device):
            key = f"{what.name} {size.m} {size.k}>{size.n} r={size.r}"
            if given.only not in what.name:
                continue
            if not budget.allows(3):
                left_out.append(key)
                continue
            results[key] = measure(what, clock, ceilings)
            print(line(what, results[key]), flush=True)
        release()
    name = "dry-run" if given.dry_run else gpu_kind()
    write_result(
        given.out / f"tiles--{name}.json",
        {"ceilings": asdict(ceilings), "passes": results, "left_out": left_out},
    )
    print(f"left out: {', '.join(left_out) or 'nothing'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
