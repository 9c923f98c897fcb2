"""Which arithmetic an 8-bit layer computes by: as requested, or as its first real batches show.

Until it has seen enough, a layer whose arithmetic is `auto` computes by w8a16 and also measures
the error that w8a8 would have had, forward and backward. The verdict takes effect between two
passes, never between a forward and its backward or recomputation.
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

RequestedArithmetic = Literal["auto", "w8a8", "w8a16"]

MEASURED_CALLS = 4
"""Calls that are measured before a verdict."""

_PATIENCE = 4
"""After `_PATIENCE * MEASURED_CALLS` calls without a backward, forward errors alone decide."""

_ATTRIBUTE = "_peftlab_gate"

_listeners: list[Callable[[Int8Gate], None]] = []


@dataclass(slots=True)
class Int8Gate:
    """One layer's arithmetic: `requested`, or for `auto` the `verdict` once there is one.

    Errors are in multiples of w8a8's on Gaussian rows; w8a8 is chosen up to a mean of `tolerance`.
    """

    layer: str
    requested: RequestedArithmetic = "auto"
    tolerance: float = error_gate.TOLERANCE
    verdict: Int8Arithmetic | None = None
    forward_errors: list[float] = field(default_factory=list)
    backward_errors: list[float] = field(default_factory=list)
    _calls: int = 0
    _awaits_backward: bool = False

    @property
    def arithmetic(self) -> Int8Arithmetic:
        """The arithmetic that the layer uses at present."""
        if self.requested != "auto":
            return self.requested
        return self.verdict or "w8a16"

    @property
    def error(self) -> float:
        """The larger of the mean errors measured, forward and backward."""
        return max(_mean(self.forward_errors) or 0.0, _mean(self.backward_errors) or 0.0)

    def compute(
        self, x: Tensor, weight: Int8Weight, call: Callable[[Int8Arithmetic], Tensor]
    ) -> Tensor:
        """`call` with the arithmetic for `x [..., K]`; measures until there is a verdict."""
        if self.requested != "auto" or self.verdict is not None or torch.compiler.is_compiling():
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

    def decide_now(self) -> None:
        """Keep the arithmetic that the layer has used so far, if there is no verdict yet."""
        if self.requested == "auto" and self.verdict is None:
            self.verdict = "w8a16"
            self._notify()

    def _notify(self) -> None:
        for listener in tuple(_listeners):
            listener(self)

    def to_json(self) -> dict[str, Any]:
        """The state in JSON values."""
        return {
            "arithmetic": self.arithmetic,
            "decided": self.requested != "auto" or self.verdict is not None,
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
        # While a model trains, an evaluation in between must not change the arithmetic.
        patient = self._calls < _PATIENCE * MEASURED_CALLS or not torch.is_grad_enabled()
        if self._awaits_backward and len(self.backward_errors) < MEASURED_CALLS and patient:
            return
        self.verdict = "w8a8" if self.error <= self.tolerance else "w8a16"
        self._notify()


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
    """The gate that `set_gate` stored on a module."""
    gate: Int8Gate | None = module.__dict__.get(_ATTRIBUTE)
    return gate


def set_gate(module: Any, gate: Int8Gate | None) -> None:
    """Store a gate on a module, where copying and pickling keep it, or remove it."""
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
def on_verdict(listener: Callable[[Int8Gate], None]) -> Iterator[None]:
    """Call `listener` with each gate that reaches its verdict inside the block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def check_arithmetic(arithmetic: str, tolerance: float) -> None:
    """Raises `ValueError` for settings that no gate can have."""
    names = get_args(RequestedArithmetic)
    if arithmetic not in names:
        raise ValueError(f"arithmetic is {arithmetic!r}; it must be one of {', '.join(names)}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance}; it must be 0 or more")


def _mean(errors: list[float]) -> float | None:
    return sum(errors) / len(errors) if errors else None
