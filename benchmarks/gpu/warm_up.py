"""Compiling the GPU suite's kernels on all cores, into Triton's cache.

    python -m benchmarks.gpu.warm_up --part 0/8 [--dry-run]

One of several processes: each launches its share of the kernels once and checks nothing. The suite
would compile them too, one after the other, for as long as it has to measure.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.gpu.correctness import cases, check
from benchmarks.gpu.layers import layer_case, release, row_of
from benchmarks.gpu.targets import OURS_IN_TRITON, OVER_8_BITS, SHAPES, SIZES
from benchmarks.layers.layer_case import Case, inputs_of, weights_of

Job = Callable[[], object]


def groups(device: str, dry: bool) -> Iterator[list[Job]]:
    """All launches; groups have few kernels in common with one another."""
    jobs: defaultdict[tuple[object, ...], list[Job]] = defaultdict(list)
    for row, (rows, rank, dropout), shape in itertools.product(OURS_IN_TRITON, SIZES, SHAPES):
        case = layer_case(shape, rows, rank, dropout, device, dry)
        jobs[row, rank, dropout > 0].append(partial(_launch, row, case))
    for row, (rows, rank, dropout), shape in itertools.product(OVER_8_BITS, SIZES[:2], SHAPES):
        case = layer_case(shape, rows, rank, dropout, device, dry)
        jobs[row, dropout > 0].append(partial(_launch, row, case))
    for row, sizes, dtype, dropout in cases(dry):
        if row in OURS_IN_TRITON or row in OVER_8_BITS:
            job = partial(check, row, sizes, dtype, dropout, device)
            jobs[row, dtype, dropout].append(job)
    # The longest first, so that no process starts one when the others are done.
    yield from sorted(jobs.values(), key=len, reverse=True)


def _launch(row: str, case: Case) -> None:
    row_of(row, case, weights_of(case), inputs_of(case, case.dtype))()
    release()


def compile_ahead(seconds: float, *, dry: bool) -> str:
    """Run the processes for at most this long; how they ended, in words."""
    number = 1 if dry else max(1, min(8, (os.cpu_count() or 2) // 2))
    command = [sys.executable, "-m", "benchmarks.gpu.warm_up", *(["--dry-run"] * dry)]
    running = [
        subprocess.Popen([*command, "--part", f"{part}/{number}"], stderr=subprocess.DEVNULL)
        for part in range(number)
    ]
    end = time.monotonic() + seconds
    for process in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.1, end - time.monotonic()))
    late = [process for process in running if process.poll() is None]
    for process in late:
        process.kill()
        process.wait()
    failed = sum(1 for process in running if process.returncode and process not in late)
    return f"{number} processes compiled ahead; {len(late)} were not done in time, {failed} failed"


def main() -> None:
    """Run one process's share; a kernel that fails here fails where it is checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--part", required=True)
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    part, number = map(int, given.part.split("/"))
    device = "cpu" if given.dry_run else "cuda"
    some = 1 if given.dry_run else None  # nothing is compiled there
    for group in list(groups(device, given.dry_run))[part::number][:some]:
        for job in group[:some]:
            with contextlib.suppress(Exception):
                job()


if __name__ == "__main__":
    main()
