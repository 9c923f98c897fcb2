"""Which arithmetic an 8-bit layer computes by: as asked, or as its first real batches show.

Until it has seen enough, a layer whose arithmetic is `auto` computes by w8a16 and measures on the
side how far w8a8 would have been off, forward and backward. The verdict comes into force between
two passes, never between a forward and the backward, or the recomputation, that belongs to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from peftlab_kernels import error_gate
from peftlab_kernels.functional import Int8Arithmetic, int8_lora_linear
from peftlab_kernels.int8_format import Int8Weight

AskedArithmetic = Literal["auto", "w8a8", "w8a16"]

MEASURED_CALLS = 4
"""Calls that are measured before a verdict."""

_PATIENCE = 4
"""After this many times as many calls without a backward, forward alone decides."""

_ATTRIBUTE = "_peftlab_gate"

_listeners: list[Callable[[Int8Gate], None]] = []


@dataclass(slots=True)
class Int8Gate:
    """One layer's arithmetic: `asked`, or for `auto` the `verdict` once it is there.

    Errors are in multiples of w8a8's on Gaussian rows; `tolerance` is the largest mean let through.
    """

    layer: str
    asked: AskedArithmetic = "auto"
    tolerance: float = error_gate.TOLERANCE
    verdict: Int8Arithmetic | None = None
    forward_errors: list[float] = field(default_factory=list)
    backward_errors: list[float] = field(default_factory=list)
    _calls: int = 0
    _awaits_backward: bool = False

    @property
    def arithmetic(self) -> Int8Arithmetic:
        """What the layer computes by as it stands."""
        if self.asked != "auto":
            return self.asked
        return self.verdict or "w8a16"

    @property
    def error(self) -> float:
        """The larger of the mean errors measured, forward and backward."""
        return max(_mean(self.forward_errors) or 0.0, _mean(self.backward_errors) or 0.0)

    def compute(
        self, x: Tensor, weight: Int8Weight, call: Callable[[Int8Arithmetic], Tensor]
    ) -> Tensor:
        """`call` with the arithmetic for `x [..., K]`; measures while the verdict is open."""
        if self.asked != "auto" or self.verdict is not None or torch.compiler.is_compiling():
            return call(self.arithmetic)
        recomputing = torch._C._current_graph_task_id() != -1
        if not recomputing:
            self._decide_if_due()
            if self.verdict is not None:
                return call(self.verdict)
            self._measure(x, weight)
        y = call("w8a16")
        if y.requires_grad and x.requires_grad:  # else no dx is formed
            self._awaits_backward = True
            y.register_hook(_Backward(self, weight))
        return y

    def settle(self) -> None:
        """Stay with the arithmetic that the layer has computed by so far."""
        if self.asked == "auto" and self.verdict is None:
            self.verdict = "w8a16"
            self._tell()

    def _tell(self) -> None:
        for listener in tuple(_listeners):
            listener(self)

    def to_json(self) -> dict[str, Any]:
        """The state in JSON values."""
        return {
            "arithmetic": self.arithmetic,
            "decided": self.asked != "auto" or self.verdict is not None,
            "forward_error": _mean(self.forward_errors),
            "backward_error": _mean(self.backward_errors),
        }

    def _measure(self, x: Tensor, weight: Int8Weight) -> None:
        self._calls += 1
        if len(self.forward_errors) < MEASURED_CALLS and x.numel():
            rows = x.detach().reshape(-1, x.shape[-1])
            self.forward_errors.append(error_gate.forward_error(rows, weight))

    def _decide_if_due(self) -> None:
        if len(self.forward_errors) < MEASURED_CALLS:
            return
        # Where a model trains, an evaluation in between must not be what changes the arithmetic.
        patient = self._calls < _PATIENCE * MEASURED_CALLS or not torch.is_grad_enabled()
        if self._awaits_backward and len(self.backward_errors) < MEASURED_CALLS and patient:
            return
        self.verdict = "w8a8" if self.error <= self.tolerance else "w8a16"
        self._tell()


class _Backward:
    """Measures the gradient of one call's output; an object, so that a layer can be pickled."""

    __slots__ = ("gate", "weight")

    def __init__(self, gate: Int8Gate, weight: Int8Weight) -> None:
        self.gate, self.weight = gate, weight

    def __call__(self, dy: Tensor) -> None:
        errors = self.gate.backward_errors
        if len(errors) < MEASURED_CALLS and dy.numel():
            errors.append(error_gate.backward_error(dy.reshape(-1, dy.shape[-1]), self.weight))


def gate_of(module: Any) -> Int8Gate | None:
    """The gate that `set_gate` left on a module."""
    found: Int8Gate | None = module.__dict__.get(_ATTRIBUTE)
    return found


def set_gate(module: Any, gate: Int8Gate | None) -> None:
    """Leave a gate on a module, where copying and pickling keep it, or take it away."""
    if gate is None:
        module.__dict__.pop(_ATTRIBUTE, None)
    else:
        module.__dict__[_ATTRIBUTE] = gate


def frozen_int8(
    x: Tensor, weight: Int8Weight, bias: Tensor | None, gate: Int8Gate | None
) -> Tensor:
    """The frozen layer, by its gate."""

    def call(arithmetic: Int8Arithmetic) -> Tensor:
        return int8_lora_linear(x, *weight, bias=bias, arithmetic=arithmetic)

    return call("w8a16") if gate is None else gate.compute(x, weight, call)


@contextmanager
def told_verdicts(listener: Callable[[Int8Gate], None]) -> Iterator[None]:
    """Tell `listener` of each gate that decides, as it does."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def check_arithmetic(arithmetic: str, tolerance: float) -> None:
    """Raises `ValueError` for what no gate can be."""
    names = get_args(AskedArithmetic)
    if arithmetic not in names:
        raise ValueError(f"arithmetic is {arithmetic!r}; it must be one of {', '.join(names)}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance}; it must be 0 or more")


def _mean(errors: list[float]) -> float | None:
    return sum(errors) / len(errors) if errors else None
