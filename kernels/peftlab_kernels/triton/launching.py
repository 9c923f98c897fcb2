"""Launching a kernel again without deciding anything again.

Triton's own launch takes as long as a small kernel runs: it binds every argument by name, and asks
the driver of every pointer whether a GPU can read it. What a compiled kernel depends on is less:
dtypes, alignments, and of some sizes whether they are 1 or multiples of 16. All but the alignments
is known once an operator has laid out a call with these sizes. That layout is a function decorated
with `planned`, which is called once for each; it returns `Launch`es, which keep what Triton
compiled and hand it addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from peftlab_kernels.triton.dot import interpreting

F = TypeVar("F", bound=Callable[..., Any])

MOST = 4096
"""Plans kept of a kind; sizes that follow the number of tokens make new ones all the time."""

_planners: list[Any] = []


def planned(function: F) -> F:
    """Keep what `function` returns by its arguments, which decide everything about a launch."""
    kept = lru_cache(maxsize=MOST)(function)
    _planners.append(kept)
    return kept  # type: ignore[return-value]


class Launch:
    """A kernel with its grid, sizes and constants: what is left of a call is addresses.

    `sizes` are those of the kernel's numbers that the compiler looks at; numbers that change come
    behind them and are marked do_not_specialize, or are floats. `constants` are all of its
    `tl.constexpr`, which come last in it, and the launch's options.
    """

    __slots__ = ("_compiled", "_grid", "_kernel", "_sizes", "constants")

    def __init__(
        self, kernel: Any, grid: tuple[int, ...], sizes: tuple[int, ...], **constants: Any
    ) -> None:
        self._kernel, self._sizes, self.constants = kernel, sizes, constants
        self._grid = (*grid, 1, 1)[:3]
        self._compiled: dict[Any, tuple[Any, tuple[Any, ...]]] = {}

    def __call__(
        self, tensors: Sequence[Tensor | TensorDescriptor | None], *changing: float
    ) -> None:
        """On the current device and stream; tensors of always the same dtypes."""
        if interpreting():
            self._kernel[self._grid](*tensors, *self._sizes, *changing, **self.constants)
            return
        driver = triton.runtime.driver.active
        device = driver.get_current_device()
        passed: list[Any] = []
        bits = 0
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                address = tensor.data_ptr()
                bits |= address
                passed.append(address)
            else:
                passed.append(tensor)
        key = device if not bits & 15 else (device, *map(_is_aligned, passed))
        found = self._compiled.get(key)
        if found is None:
            self._compile(key, tensors, changing)
            return
        made, constants = found
        stream = driver.get_current_stream(device)
        enter, leave = _hooks()
        told = None
        numbers = (*self._sizes, *changing, *constants)
        if enter is not None:
            told = made.launch_metadata(self._grid, stream, *passed, *numbers)
        x, y, z = self._grid
        made.run(
            x, y, z, stream, made.function, made.packed_metadata, told, enter, leave,
            *passed, *numbers,
        )  # fmt: skip

    def _compile(self, key: Any, tensors: Sequence[Any], changing: tuple[float, ...]) -> None:
        """Triton's whole way, which launches as well."""
        kernel = self._kernel
        sizes = len(tensors) + len(self._sizes)
        last = [p.name for p in kernel.params if p.is_constexpr]
        if last != [p.name for p in kernel.params[sizes + len(changing) :]]:
            raise TypeError(f"the constants of {kernel.__name__} must come after all else")
        for parameter, number in zip(kernel.params[sizes:], changing, strict=False):
            if isinstance(number, int) and not parameter.do_not_specialize:
                raise TypeError(
                    f"{parameter.name} of {kernel.__name__} changes from call to call; mark it "
                    "do_not_specialize, or give it among the sizes"
                )
        made = kernel[self._grid](*tensors, *self._sizes, *changing, **self.constants)
        if hasattr(made, "packed_metadata") and hasattr(made, "function"):
            self._compiled[key] = made, tuple(self.constants[name] for name in last)


def _is_aligned(address: Any) -> bool:
    return not (isinstance(address, int) and address & 15)


def _hooks() -> tuple[Any, Any]:
    """What is called around a launch, a profiler's; None where nobody listens."""
    runtime = triton.knobs.runtime
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
    listened = getattr(enter, "calls", enter) or getattr(leave, "calls", leave)
    return (enter, leave) if listened else (None, None)


def ceil_div(count: int, size: int) -> int:
    """How many blocks of `size` hold `count`; Triton's own cdiv is slow outside of kernels."""
    return -(-count // size)


def layout(shape: Sequence[int], strides: Sequence[int], block: Sequence[int]) -> dict[str, Any]:
    """Of matrices read by Hopper's unit for whole blocks, all that `descriptor` needs to know.

    Rows must be contiguous and begin at multiples of 16 bytes.
    """
    return {
        "shape": [*shape], "strides": [*strides], "block_shape": [*block],
        "padding": "zero", "round_f32_to_tf32": False,
    }  # fmt: skip


def descriptor(matrix: Tensor, laid_out: dict[str, Any]) -> TensorDescriptor:
    """The matrix for that unit, without the checks of the constructor: the plan made them."""
    found = TensorDescriptor.__new__(TensorDescriptor)
    found.__dict__ = {**laid_out, "base": matrix}
    return found


def forget() -> None:
    """Let go of every plan, and of what was compiled: another driver is there."""
    for planner in _planners:
        planner.cache_clear()
