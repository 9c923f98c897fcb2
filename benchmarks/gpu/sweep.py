"""Which tile shapes are fastest on this GPU, pass by pass: the clock's word on the kernels' tables.

    PYTHONPATH=.:kernels python -m benchmarks.gpu.sweep --out DIR [--minutes 3] [--only TEXT]
        [--dry-run]

Each pass of a LoRA layer alone, on shapes of Llama-3.1-8B, by every candidate; cuBLAS beside the
products. Beside each time stands the least there is, from two measured rates. Results are compared
with those of the configuration in the tables, in bits where a tile only orders the same sums, and
what differs is not timed. Writes `tiles--<gpu>.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.clock import Budget, Clock
from benchmarks.gpu.layers import release
from benchmarks.gpu.limits import Ceilings, measure_ceilings
from benchmarks.result_files import gpu_kind, write_result
from peftlab_kernels.int8_format import Int8Weight, int8_quantize
from peftlab_kernels.triton.configurations import Strip, Target, Tile, target_of
from peftlab_kernels.triton.int8_configurations import Row
from peftlab_kernels.triton.int8_product import int8_product
from peftlab_kernels.triton.int8_weight import dequantize, transpose
from peftlab_kernels.triton.lora_backward import cross, dy_pass
from peftlab_kernels.triton.lora_forward import down_project
from peftlab_kernels.triton.masked_addition import add_masked
from peftlab_kernels.triton.philox import NO_DROPOUT, dropout_of
from peftlab_kernels.triton.product import product
from peftlab_kernels.triton.quantize import quantize_rows

VISITS = 3
REPEATS = 4


@dataclass(frozen=True, slots=True)
class Size:
    """M tokens, K columns of x, N of y, rank R."""

    m: int
    k: int
    n: int
    r: int = 16


@dataclass(frozen=True, slots=True)
class Pass:
    """One kernel at one size: how it runs by a candidate, None being the table's own."""

    name: str
    size: Size
    call: Callable[..., Any]
    knob: str
    """The argument that takes a candidate."""
    flops: float
    moved: float
    """Bytes that must be read or written."""
    candidates: Sequence[Any] = ()
    peers: tuple[tuple[str, Callable[[], object]], ...] = ()

    def run(self, candidate: Any) -> tuple[Tensor, ...]:
        """By the candidate."""
        found = self.call(**{self.knob: candidate})
        return found if isinstance(found, tuple) else (found,)

    def least(self, ceilings: Ceilings) -> float:
        """Seconds by the slower of arithmetic and bytes; int8 units are twice as fast."""
        return max(self.flops / ceilings.flops, self.moved / ceilings.bandwidth)


SIZES = (
    Size(8192, 4096, 14336), Size(8192, 14336, 4096), Size(8192, 4096, 4096), Size(2048, 4096, 4096)
)  # fmt: skip
TINY = (Size(33, 64, 96),)

PRODUCTS = tuple(
    Tile(*sizes, tma=True)
    for sizes in (
        (128, 256, 64, 8, 3), (128, 256, 64, 8, 4), (256, 128, 64, 8, 3), (256, 128, 64, 8, 4),
        (128, 128, 64, 8, 4), (128, 128, 64, 4, 4), (128, 128, 64, 4, 3), (128, 128, 64, 4, 5),
        (128, 128, 128, 8, 3), (64, 256, 64, 4, 4), (64, 256, 64, 4, 3), (64, 128, 64, 4, 4),
    )
)  # fmt: skip
INT8_PRODUCTS = tuple(
    Tile(*sizes, tma=True)
    for sizes in (
        (128, 256, 128, 8, 3), (128, 256, 128, 8, 4), (256, 128, 128, 8, 3),
        (256, 128, 128, 8, 4), (128, 256, 64, 8, 4), (128, 128, 128, 8, 4), (128, 128, 128, 4, 4),
        (128, 128, 256, 8, 3), (64, 256, 128, 4, 4), (64, 128, 128, 4, 4),
    )
)  # fmt: skip
DOWN = tuple(
    Strip(*sizes)
    for sizes in (
        (64, 128, 4, 3), (64, 64, 4, 3), (64, 64, 4, 5), (64, 128, 4, 5), (64, 256, 4, 3),
        (64, 256, 8, 3), (128, 128, 8, 3), (128, 64, 4, 4), (128, 64, 8, 4), (32, 128, 4, 4),
        (32, 256, 4, 3), (16, 256, 4, 4),
    )
)  # fmt: skip
CROSS = tuple(
    Strip(*sizes)
    for sizes in (
        (64, 128, 4, 3), (64, 128, 4, 5), (32, 128, 4, 3), (32, 128, 4, 5), (64, 64, 4, 4),
        (128, 128, 8, 3), (64, 256, 8, 3), (32, 256, 4, 4), (128, 64, 4, 3), (64, 128, 8, 4),
    )
)  # fmt: skip
DY = tuple(
    Strip(*sizes)
    for sizes in (
        (64, 256, 8, 3), (64, 256, 8, 2), (64, 128, 4, 3), (64, 128, 8, 3), (128, 128, 8, 3),
        (32, 256, 8, 4), (64, 256, 4, 3), (128, 256, 8, 2), (32, 256, 4, 4),
    )
)  # fmt: skip
ADD = tuple(
    Strip(*sizes)
    for sizes in (
        (64, 64, 4, 2), (64, 128, 4, 2), (64, 128, 8, 2), (128, 128, 8, 2), (32, 256, 4, 2),
        (64, 256, 8, 2),
    )
)  # fmt: skip
ROWS = tuple(
    Row(columns, warps)
    for columns, warps in (
        (1024, 4), (2048, 4), (4096, 4), (4096, 8), (4096, 16), (16384, 8), (16384, 16),
        (16384, 32),
    )
)  # fmt: skip
TURN = tuple(
    Strip(*sizes)
    for sizes in ((128, 128, 8, 1), (64, 64, 4, 1), (128, 64, 4, 1), (64, 128, 4, 1),
                  (128, 128, 4, 1), (64, 256, 8, 1), (256, 64, 8, 1))
)  # fmt: skip
WIDEN = tuple(
    Strip(*sizes)
    for sizes in ((16, 512, 8, 1), (16, 512, 4, 1), (8, 1024, 8, 1), (8, 512, 4, 1),
                  (4, 1024, 4, 1), (32, 256, 8, 1))
)  # fmt: skip


def passes(size: Size, device: str) -> Iterator[Pass]:
    """Every pass of a layer of this size."""
    m, k, n, r = size.m, size.k, size.n, size.r
    bf16, target = torch.bfloat16, target_of(torch.device(device))
    draw = torch.Generator(device).manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, device=device).mul_(0.02).to(bf16)

    x, dy, w = normal(m, k), normal(m, n), normal(n, k)
    a, b = normal(r, k).float(), normal(n, r).float()
    dropout = dropout_of(torch.tensor([12345]), 0.05)
    h = down_project(x, a, factor=2.0, target=target)
    g = down_project(dy, b.T.contiguous(), factor=2.0, target=target)
    yield from _products(size, target, (x, dy, w, a, b, h, g))
    bytes_x, bytes_dy = 2 * m * k, 2 * m * n
    for drop, words in ((NO_DROPOUT, ""), (dropout, ", dropout")):
        down = partial(down_project, x, a, factor=2.0, dropout=drop, target=target)
        yield Pass("down x" + words, size, down, "strip", 2 * m * k * r, bytes_x, DOWN)
        across = partial(cross, g, x, a, dropout=drop, target=target)
        yield Pass("cross g x" + words, size, across, "strip", 2 * m * k * r, bytes_x, CROSS)
    if r <= 32:
        both = partial(dy_pass, dy, b, h, factor=2.0, target=target)
        yield Pass("dy pass", size, both, "strip", 4 * m * n * r, bytes_dy, DY)
    down = partial(down_project, dy, b.T, factor=2.0, target=target)
    yield Pass("down dy", size, down, "strip", 2 * m * n * r, bytes_dy, DOWN)
    across = partial(cross, h, dy, b, transposed=True, target=target)
    yield Pass("cross h dy", size, across, "strip", 2 * m * n * r, bytes_dy, CROSS)
    made = torch.zeros(m, k, dtype=bf16, device=device)

    def added(strip: Any) -> Tensor:
        return add_masked(made.clone(), g, a, dropout=dropout, target=target, strip=strip)

    yield Pass("add masked, copied", size, added, "strip", 2 * m * k * r, 8 * m * k, ADD)
    yield from _eight_bits(size, target, (x, dy, w, a, b, h, g))


def _products(size: Size, target: Target, made: tuple[Tensor, ...]) -> Iterator[Pass]:
    m, k, n, r = size.m, size.k, size.n, size.r
    x, dy, w, a, b, h, g = made
    flops, moved = 2 * m * n * k, 2 * (m * n + m * k + n * k)
    up, down = b.to(x.dtype).T, a.to(x.dtype)
    dropout = dropout_of(torch.tensor([12345]), 0.05)
    y = partial(product, x, w, h, b.T, target=target)
    yield Pass(
        "product y", size, y, "tile", flops, moved, PRODUCTS,
        (("cuBLAS", lambda: x @ w.T), ("cuBLAS, addmm_", lambda: (x @ w.T).addmm_(h[:, :r], up))),
    )  # fmt: skip
    dx = partial(product, dy, w.T, g, a, target=target)
    yield Pass(
        "product dx", size, dx, "tile", flops, moved, PRODUCTS,
        (("cuBLAS", lambda: dy @ w), ("cuBLAS, addmm_", lambda: (dy @ w).addmm_(g[:, :r], down))),
    )  # fmt: skip
    masked = partial(add_masked, g=g, a=a, dropout=dropout, target=target)
    yield Pass(
        "product dx, dropout", size, partial(dx, dropout=dropout), "tile", flops, moved, PRODUCTS,
        (("cuBLAS, add masked", lambda: masked(dy @ w)),),
    )  # fmt: skip


def _eight_bits(size: Size, target: Target, made: tuple[Tensor, ...]) -> Iterator[Pass]:
    m, k, n, r = size.m, size.k, size.n, size.r
    x, dy, w, a, b, h, g = made
    weight = Int8Weight(*int8_quantize(w))
    codes, scales = weight
    rows, dy_rows = quantize_rows(x, target=target), quantize_rows(dy, scales, target=target)
    turned = transpose(codes, target=target).clone()
    dropout = dropout_of(torch.tensor([12345]), 0.05)
    flops, moved = m * n * k, 2 * m * n + m * k + n * k  # by units that are twice as fast
    int_mm = torch._int_mm

    y = partial(int8_product, rows, codes, h, b.T, dtype=x.dtype, target=target, scales=scales)
    yield Pass(
        "int8 product y", size, y, "tile", flops, moved, INT8_PRODUCTS,
        (("_int_mm", lambda: int_mm(rows.codes, codes.T)),),
    )  # fmt: skip
    dx = partial(int8_product, dy_rows, turned, g, a, dtype=x.dtype, target=target)
    moved = 2 * m * k + m * n + n * k
    yield Pass(
        "int8 product dx", size, dx, "tile", flops, moved, INT8_PRODUCTS,
        (("_int_mm", lambda: int_mm(dy_rows.codes, turned.T)),),
    )  # fmt: skip
    dropped = partial(dx, dropout=dropout)
    yield Pass("int8 product dx, dropout", size, dropped, "tile", flops, moved, INT8_PRODUCTS)
    quantize = partial(quantize_rows, x, target=target)
    yield Pass("quantize x", size, quantize, "row", 0, 3 * m * k, ROWS)
    quantize = partial(quantize_rows, dy, scales, target=target)
    yield Pass("quantize dy", size, quantize, "row", 0, 3 * m * n, ROWS)
    for drop, words in ((NO_DROPOUT, ""), (dropout, ", dropout")):
        down = partial(
            down_project, rows, a, factor=2.0, dtype=x.dtype, dropout=drop, target=target
        )
        yield Pass("down codes" + words, size, down, "strip", 2 * m * k * r, m * k, DOWN)
        across = partial(cross, g, rows, a, dropout=drop, target=target)
        yield Pass("cross g codes" + words, size, across, "strip", 2 * m * k * r, m * k, CROSS)
    turn = partial(transpose, codes, target=target)
    yield Pass("turn", size, turn, "strip", 0, 2 * n * k, TURN)
    whole = partial(dequantize, weight, x.dtype, target=target)
    yield Pass("dequantize", size, whole, "strip", 0, 3 * n * k, WIDEN)


def _in_a_graph(run: Callable[[], object]) -> Callable[[], object]:
    """Some calls as one CUDA graph: what is timed is the GPU's work, not the launches."""
    if not torch.cuda.is_available():
        return run
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(REPEATS):
            run()
    return graph.replay


def host_seconds(run: Callable[[], object]) -> float:
    """What a call takes to launch."""
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
            found = what.run(candidate)
            for got, want in zip(found, expected, strict=True):
                error = float((got.double() - want).norm() / want.norm())
                if not error < 1e-2:
                    raise ArithmeticError(f"differs from the table's own by {error:.1e}")
        except Exception as error:  # shared memory, a compiler's: the finding
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
    for turn in range(visits):
        for name in runs if turn % 2 == 0 else reversed(runs):
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


def line(what: Pass, found: dict[str, Any]) -> str:
    """The table's time, the peers' and the three fastest candidates."""
    micros = found["micros"]
    peers = [name for name, _ in what.peers if name in micros]
    best = [name for name in micros if name != "table" and name not in peers][:3]
    size = what.size
    words = ", ".join(f"{name} {micros[name]:.1f}" for name in ("table", *peers, *best))
    failed = f"; {len(found['failed'])} failed" if found["failed"] else ""
    return (
        f"{what.name} {size.m} {size.k}>{size.n} r={size.r}: least {found['least']:.1f}, "
        f"launched in {found['launches']:.0f}, {words}{failed}"
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
