"""Correctness of the kernels on this device, checked before anything is timed.

Each base product, dtype and awkward size against float64, with every gradient, in memory that holds
NaN until it is written, twice, for equal bits. The tests do more; this is what a benchmark needs.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.clock import Budget
from benchmarks.gpu.layers import OURS, around, release
from benchmarks.gpu.targets import OVER_8_BITS
from peftlab_kernels import reference
from peftlab_kernels.functional import int8_lora_linear, lora_linear
from peftlab_kernels.int8_format import int8_quantize

BOUND = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-2}
"""Relative Frobenius errors."""
TIES = 1e-3
"""The same where fp32 x is quantised: of two codes as near, float64 may find the other."""
SCALING = 1.7
Shape = tuple[int, int, int, int]

AWKWARD: tuple[Shape, ...] = ((37, 72, 100, 3), (1, 136, 72, 5), (130, 40, 168, 16))
"""M, K, N, R."""
DRY: tuple[Shape, ...] = ((5, 40, 72, 3), (1, 72, 40, 5))
"""Of a dry run: as awkward, and two tiles of the interpreter's suffice for K and N."""
REAL: tuple[Shape, ...] = ((1000, 4096, 1024, 16), (520, 1024, 4096, 64))


def check_all(device: str, budget: Budget, dry: bool) -> dict[str, Any]:
    """Every check with its worst error; `failures` in words, and how many the time ran out for."""
    checks: list[dict[str, Any]] = []
    skipped = 0
    for row, shape, dtype, dropout in cases(dry):
        if not budget.allows(5):
            skipped += 1
            continue
        described = {
            "row": row, "shape": list(shape), "dtype": str(dtype), "dropout": dropout,
        }  # fmt: skip
        try:
            errors = check(row, shape, dtype, dropout, device)
            bound = max(BOUND[dtype], TIES) if row == "ours, w8a8" else BOUND[dtype]
            bad = {name: e for name, e in errors.items() if not e <= bound}
            failure = f"errors beyond {bound}: {bad}" if bad else None
        except Exception as error:  # any error of a compiler or a launch is recorded
            errors, failure = {}, f"{type(error).__name__}: {error}"[:500]
        checks.append({**described, "errors": errors, "failure": failure})
    release()
    failures = [
        f"{c['row']} {c['shape']} {c['dtype']} p={c['dropout']}: {c['failure']}"
        for c in checks
        if c["failure"]
    ]
    return {"checks": checks, "failures": failures, "skipped": skipped}


def cases(dry: bool) -> Iterator[tuple[str, Shape, torch.dtype, float]]:
    """The likeliest to fail first: our kernels in bf16, with dropout, at awkward sizes."""
    shapes = DRY if dry else AWKWARD + REAL
    for dtype, some in ((torch.bfloat16, shapes), (torch.float32, shapes[:1]),
                        (torch.float16, shapes[:1])):  # fmt: skip
        for shape, dropout, row in itertools.product(some, (0.0, 0.25), (*OVER_8_BITS, *OURS)):
            yield row, shape, dtype, dropout


def check(
    row: str, shape: Shape, dtype: torch.dtype, dropout: float, device: str
) -> dict[str, float]:
    """Relative errors of y and of each gradient; raises `ArithmeticError` if two runs differ."""
    rows, in_features, out_features, rank = shape
    draw = torch.Generator().manual_seed(sum(shape))

    def random(*sizes: int, of: torch.dtype = dtype) -> Tensor:
        return (torch.randn(sizes, generator=draw, dtype=torch.float64) / 3).to(of).to(device)

    x, weight = random(rows, in_features), random(out_features, in_features)
    bias = random(out_features)
    a, b = (random(*s, of=torch.float32) for s in ((rank, in_features), (out_features, rank)))
    dy = random(rows, out_features)
    leaves = [leaf.requires_grad_() for leaf in (x, a, b)]
    codes, scales = int8_quantize(weight)
    arithmetic: Any = OVER_8_BITS.get(row)

    def run() -> list[Tensor]:
        torch.manual_seed(3)
        with around(row):
            given: dict[str, Any] = {"scaling": SCALING, "bias": bias, "dropout": dropout}
            if arithmetic:
                y = int8_lora_linear(x, codes, scales, a, b, arithmetic=arithmetic, **given)
            else:
                y = lora_linear(x, weight, a, b, **given)
            return [y.detach(), *torch.autograd.grad(y, leaves, dy)]

    with poisoned_memory():
        results, again = run(), run()
    keep = _kept(row, rows, in_features, dropout, device)
    truths = _truths([t.detach().double() for t in (x, weight, a, b, bias, dy)], keep, arithmetic)
    if not all(torch.equal(one, other) for one, other in zip(results, again, strict=True)):
        raise ArithmeticError("two runs with one seed differ, or a result is not a number")
    return {
        name: float((got.double() - truth).norm() / truth.norm())
        for got, (name, truth) in zip(results, truths.items(), strict=True)
    }


def _truths(wide: list[Tensor], keep: Tensor | None, arithmetic: Any) -> dict[str, Tensor]:
    """y and the gradients in float64, of x, W, A, B, bias and dy."""
    x, weight, a, b, bias, dy = wide
    of: dict[str, Any] = {"scaling": SCALING, "keep": keep}
    if arithmetic is None:
        y = reference.lora_linear(x, weight, a, b, bias=bias, **of)
        backward = reference.lora_linear_backward(dy, x, weight, a, b, **of)
    else:
        codes, scales = int8_quantize(weight)
        of["arithmetic"] = arithmetic
        layer = (x, codes, scales.double(), a, b)
        y = reference.int8_lora_linear(*layer, bias=bias, **of)
        backward = reference.int8_lora_linear_backward(dy, *layer, **of)
    return {"y": y, **backward._asdict()}


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill fresh tensors with NaN, so that reads before writes show."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about operators that have no deterministic form
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)


def _kept(row: str, rows: int, in_features: int, dropout: float, device: str) -> Tensor | None:
    """The mask that the seed of `check` draws, divided by 1 - p."""
    if not dropout:
        return None
    torch.manual_seed(3)
    if row != "ours, torch":
        from peftlab_kernels.triton.philox import draw_seed, dropout_of, write_mask

        drop = dropout_of(draw_seed(), dropout)
        mask = write_mask(drop, rows, in_features, torch.device(device))
        return mask.double() * drop.scale
    from peftlab_kernels.eager.dropout_mask import draw_rows, empty_mask, scale_of_kept

    mask = empty_mask(torch.empty(rows, in_features, device=device))
    keep = torch.zeros(rows, in_features, dtype=torch.float64, device=device)
    for some, kept in draw_rows(mask, in_features, dropout):
        keep[some] = kept.double() * scale_of_kept(dropout)
    return keep
