"""Adapted layers on a GPU in shapes of Llama-3.1-8B: our variants, and the peers."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.clock import Clock
from benchmarks.gpu.limits import Ceilings, layer_limit, predicted
from benchmarks.gpu.targets import OURS_IN_TRITON, OVER_8_BITS, SHAPES, fusion_gains
from benchmarks.layers.interleaving import noise, ratio, take_turns
from benchmarks.layers.layer_case import SCALING, Case, Inputs, Weights, inputs_of, weights_of
from benchmarks.layers.peers import INT8_PEERS, PEERS, LayerStep
from peftlab_kernels import autograd
from peftlab_kernels.dispatch import use_backend
from peftlab_kernels.functional import int8_lora_linear, lora_linear
from peftlab_kernels.int8_format import int8_quantize

OURS = (*OURS_IN_TRITON, "ours, torch")
ROWS = (
    "frozen base", *OURS, "plain addmm_", "PEFT, 16-bit adapters", "PEFT", "PEFT, autocast",
)  # fmt: skip
"""The frozen base comes first: it runs twice per round, and the others add to its work."""
FEWER = ("frozen base", *OURS_IN_TRITON, "plain addmm_", "PEFT, 16-bit adapters", "PEFT")
"""For the sizes other than the main one."""
COMPILED = ("frozen base", "PEFT, compiled", "ours, epilogue", "ours, cublas")
INT8 = ("frozen base", *OVER_8_BITS, "bnb+PEFT", "bnb+PEFT, threshold 0", "PEFT, 16-bit adapters")
"""Over a weight in 8 bits, beside the base and the fastest peer over 16."""


class OperatorLayer(nn.Module):
    """`lora_linear` as a layer, with the adapters in fp32 as PEFT keeps them."""

    def __init__(self, case: Case, weights: Weights) -> None:
        super().__init__()
        self.weight = nn.Parameter(weights.weight, requires_grad=False)
        self.lora_a = nn.Parameter(weights.lora_a.clone())
        self.lora_b = nn.Parameter(weights.lora_b.clone())
        self.dropout = case.dropout

    def forward(self, x: Tensor) -> Tensor:
        """`[M, K] -> [M, N]`."""
        return lora_linear(
            x, self.weight, self.lora_a, self.lora_b, scaling=SCALING, dropout=self.dropout
        )


class Int8OperatorLayer(nn.Module):
    """`int8_lora_linear` likewise, over the case's weight in 8 bits."""

    def __init__(self, case: Case, weights: Weights, arithmetic: Any) -> None:
        super().__init__()
        self.codes, self.scales = int8_quantize(weights.weight)
        self.lora_a = nn.Parameter(weights.lora_a.clone())
        self.lora_b = nn.Parameter(weights.lora_b.clone())
        self.dropout, self.arithmetic = case.dropout, arithmetic

    def forward(self, x: Tensor) -> Tensor:
        """`[M, K] -> [M, N]`."""
        return int8_lora_linear(
            x, self.codes, self.scales, self.lora_a, self.lora_b,
            scaling=SCALING, dropout=self.dropout, arithmetic=self.arithmetic,
        )  # fmt: skip


@contextmanager
def triton_kernels(base: Any) -> Iterator[None]:
    """Every call by the Triton kernels with this base product, whatever was measured."""
    from peftlab_kernels.triton.backend import TritonKernels

    kernels, module = TritonKernels(base), vars(autograd)
    dispatched = module["kernels_for"]
    module["kernels_for"] = lambda *_, **__: kernels
    try:
        yield
    finally:
        module["kernels_for"] = dispatched


def layer_case(shape: str, rows: int, rank: int, dropout: float, device: str, dry: bool) -> Case:
    """A layer of `SHAPES`; a dry run's is tiny."""
    in_features, out_features, _ = SHAPES[shape]
    if dry:
        rows, in_features, out_features = 16, in_features // 128, out_features // 128
    return Case(rows, in_features, out_features, rank, dropout, device=device)


def around(row: str) -> AbstractContextManager[object]:
    """The context in which a row runs."""
    if row in OURS_IN_TRITON:
        return triton_kernels(OURS_IN_TRITON[row])
    if row in OVER_8_BITS:
        return use_backend("triton")
    return use_backend("torch") if row == "ours, torch" else nullcontext()


@dataclass(eq=False, slots=True)
class Row:
    """A layer's step by one row's arithmetic."""

    name: str
    step: LayerStep

    def __call__(self) -> tuple[Tensor, ...]:
        """The gradients of x, A and B."""
        with around(self.name):
            return self.step()


def row_of(name: str, case: Case, weights: Weights, inputs: Inputs) -> Row:
    """A row over the weights and inputs that all share."""
    if name in OVER_8_BITS:
        layer: nn.Module = Int8OperatorLayer(case, weights, OVER_8_BITS[name])
    elif name in OURS:
        layer = OperatorLayer(case, weights)
    else:
        layer = (PEERS[name] if name in PEERS else INT8_PEERS[name]).build(case, weights)
    return Row(name, LayerStep(layer, inputs))


def without_bitsandbytes(names: Sequence[str]) -> tuple[str, ...]:
    """The rows that run here: those of bitsandbytes only where it is installed."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        return tuple(name for name in names if not name.startswith("bnb"))
    return tuple(names)


def sets_of_inputs(case: Case) -> int:
    """The number of sets of x and dy for which none is left in the L2 when it is used again."""
    if case.device == "cpu":
        return 2
    cache = torch.cuda.get_device_properties(torch.device(case.device)).L2_cache_size
    of_a_set = 2 * case.rows * (case.in_features + case.out_features)
    return max(2, -(-3 * cache // of_a_set))


def measure(
    case: Case, names: Sequence[str], rounds: int, clock: Clock, ceilings: Ceilings, gpu: str
) -> dict[str, Any]:
    """One layer: seconds of each row, ratios to the base and the limit, noise; rows that failed.

    A row whose gradients are not those of the plain Function is not timed.
    """
    weights = weights_of(case)
    inputs = inputs_of(case, case.dtype, sets_of_inputs(case))
    ready, failed = {}, {}
    expected = _first(row_of("plain addmm_", replace(case, dropout=0.0), weights, inputs))
    for name in names:
        try:
            row = row_of(name, case, weights, inputs)
            _check(_first(row), expected, _bound(name, case))
            ready[name] = row
        except Exception as error:  # any error of a row's library: the others still run
            failed[name] = f"{type(error).__name__}: {error}"[:500]
    with torch.autograd.set_multithreading_enabled(False):  # as in `steps.py`, for every row
        # In the interpreter nothing warms up, and every row ran once already.
        warm_up = int(case.device != "cpu")
        seconds = take_turns(ready, rounds, warm_up=warm_up, clock=clock)
    base = next(iter(ready))
    limit = layer_limit(case, ceilings)
    medians = {name: statistics.median(all_) for name, all_ in seconds.items()}
    host = {name: statistics.median(clock.host[row]) for name, row in ready.items()}
    result = {
        "case": asdict(case) | {"dtype": str(case.dtype)},
        "rounds": rounds,
        "sets_of_inputs": len(inputs),
        "median_seconds": medians,
        "seconds": seconds,
        f"ratio_to_{base}": {name: asdict(ratio(seconds, name, base)) for name in ready},
        "limit_seconds": limit,
        "ratio_to_limit": {name: median / limit for name, median in medians.items()},
        "noise": asdict(noise(seconds)),
        "host_seconds": host,
        "bound_by_launches": [name for name in ready if host[name] >= 0.95 * medians[name]],
        "fusion_gain": fusion_gains(medians),
        "predicted_seconds": predicted(case, gpu),
        "failed": failed,
    }
    clock.forget()  # it knows the rows, and they hold the inputs
    return result


def _first(row: Row) -> tuple[Tensor, ...]:
    gradients = row()
    row.step.rewind()  # each row starts on the same inputs
    return gradients


def _bound(name: str, case: Case) -> float:
    """With dropout nearer than nothing is; else rounding to 16 bits, or to 8 of three operands."""
    if case.dropout:
        return 0.9
    return 4e-2 if name in OVER_8_BITS or name in INT8_PEERS else 2e-2


def _check(gradients: Sequence[Tensor], expected: Sequence[Tensor], bound: float) -> None:
    """Gradients of x, and where it has an adapter of A and B, within the bound."""
    for name, got, want in zip(("x", "lora_a", "lora_b"), gradients, expected, strict=False):
        if not bool(got.isfinite().all()):
            raise ArithmeticError(f"the gradient of {name} is not finite")
        error = float((got.double() - want.double()).norm() / want.double().norm())
        # Without an adapter the same in size but not in value.
        if error > (2.0 if len(gradients) == 1 else bound):
            raise ArithmeticError(f"the gradient of {name} is off by {error:.2e}")


def line(case: Case, result: Mapping[str, Any]) -> str:
    """A case in a line or two for the log: microseconds of each row."""
    rows = _micros(result["median_seconds"])
    text = f"{case}: limit {result['limit_seconds'] * 1e6:.0f}, {rows}"
    if predicted := result["predicted_seconds"]:
        seconds = {name: value for name, value in predicted.items() if name != "of"}
        text += f"\n    predicted of an {predicted['of']}: {_micros(seconds)}"
    return text


def _micros(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value * 1e6:.0f}" for name, value in seconds.items())


def release() -> None:
    """Free the GPU's memory before the next case."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
