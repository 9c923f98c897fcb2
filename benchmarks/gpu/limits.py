"""Lower limits of times on a GPU, from two rates measured on it, and predicted times.

The limit of a pass is that of its matrix products, each bound by arithmetic or by its operands'
bytes, plus every other byte that has to be read or written once.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from benchmarks.gpu.clock import Clock
from benchmarks.layers.layer_case import Case
from benchmarks.runs.llama import ModelCase

ELEMENT = 2
"""Bytes of an activation or a weight."""


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Measured: FLOP/s of a large bf16 product, bytes/s read and written by a large copy."""

    flops: float
    bandwidth: float


def measure_ceilings(clock: Clock, device: str, dry: bool) -> Ceilings:
    """The rates of this device, on random data: products of zeros run faster than real ones."""
    side, elements = (64, 1 << 12) if dry else (8192, 1 << 31)
    a, b = (torch.randn(side, side, device=device).to(torch.bfloat16) for _ in range(2))
    product = _median(clock, lambda: a @ b)
    source = torch.ones(elements, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = _median(clock, lambda: target.copy_(source))
    clock.forget()
    return Ceilings(2 * side**3 / product, 2 * elements / copy)


def _median(clock: Clock, run: Callable[[], object]) -> float:
    return statistics.median(clock(run) for _ in range(5))


def product_limit(rows: int, inner: int, columns: int, ceilings: Ceilings) -> float:
    """Seconds of one product `[rows, inner] [inner, columns]`."""
    moved = ELEMENT * (rows * inner + inner * columns + rows * columns)
    return max(2 * rows * inner * columns / ceilings.flops, moved / ceilings.bandwidth)


def layer_limit(case: Case, ceilings: Ceilings) -> float:
    """Seconds of a LoRA layer's forward and backward.

    Beside the two products with the weight: x is read for h and again for dA, dy for g and dB
    together; the six thin products' arithmetic. The dropout mask costs nothing.
    """
    m, k, n, r = case.rows, case.in_features, case.out_features, case.rank
    side = ELEMENT * (2 * m * k + m * n) / ceilings.bandwidth
    thin = 6 * m * r * (k + n) / ceilings.flops
    return product_limit(m, k, n, ceilings) + product_limit(m, n, k, ceilings) + side + thin


def step_limit(case: ModelCase, ceilings: Ceilings) -> float:
    """Seconds of a Llama's forward and backward with LoRA on every linear layer.

    Elementwise passes read and write each operand once: norms 5 (2 forward, 3 backward), residual
    sums 6, rotary embedding 4, attention's operands, SwiGLU 8, the loss 3 of the logits.
    """
    shape, m = case.shape, case.tokens
    d, f, v = shape.hidden, shape.intermediate, shape.vocabulary
    narrow = d // shape.heads * shape.kv_heads
    linears = sum(layer_limit(Case(m, k, n, case.rank), ceilings) for k, n in shape.linears())
    # Causal: half of T x T, two products forward and five backward.
    attention = 7 * case.rows * case.length**2 * d / ceilings.flops
    block = 2 * (5 + 6) * d + 4 * (d + narrow) + 6 * (d + narrow) + 8 * f
    outside = 2 * d + 5 * d + 3 * v
    moved = ELEMENT * m * (shape.layers * block + outside) / ceilings.bandwidth
    head = product_limit(m, d, v, ceilings) + product_limit(m, v, d, ceilings)
    return shape.layers * (linears + attention) + moved + head


_PREDICTED: Mapping[str, Mapping[tuple[int, int], tuple[float, ...]]] = {
    "h100": {
        (4096, 4096): (794, 1110, 956, 736, 989),
        (4096, 14336): (2778, 3681, 3121, 2327, 3238),
    },
    "a100": {(4096, 14336): (7433, 7993, 8009, 5075, 8206)},
    "4090": {(4096, 14336): (12664, 13014, 13791, 4888, 14175)},
    "3090": {(4096, 14336): (30043, 31240, 31257, 9986, 31670)},
}
"""Microseconds of forward and backward at M=8192, r=16, from compiled code and data sheets alone:
the rows of `_ROWS`."""
_ROWS = ("frozen base", "ours, epilogue", "ours, cublas", "ours, w8a8", "ours, w8a16")

_SAME_PROCESSOR = {"h200": "h100"}


def predicted(case: Case, gpu: str) -> dict[str, float | str] | None:
    """The predicted seconds of this layer on this GPU by row; None without a prediction."""
    if (case.rows, case.rank, case.dropout) != (8192, 16, 0.0):
        return None
    for name, chips in ((n, _SAME_PROCESSOR.get(n, n)) for n in (*_PREDICTED, *_SAME_PROCESSOR)):
        row_micros = _PREDICTED[chips].get((case.in_features, case.out_features))
        if name in gpu and row_micros is not None:
            seconds = (micros / 1e6 for micros in row_micros)
            return {"of": chips, **dict(zip(_ROWS, seconds, strict=True))}
    return None
