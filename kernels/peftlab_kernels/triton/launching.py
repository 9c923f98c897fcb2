"""Launching a kernel repeatedly with little overhead.

Triton's own launch takes as long as a small kernel runs: it binds every argument by name, and
queries the driver about every pointer. A compiled kernel depends on less: dtypes, alignments, and
for some sizes whether they are 1 or multiples of 16. All but the alignments is known once an
operator has planned a call with these sizes. A plan is a function decorated with `planned`, which
is called once for each set of sizes; it returns `Launch`es, which keep the compiled kernel and
pass it addresses.
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
"""Plans kept of each kind; the number of tokens varies, and each makes a new plan."""

_planners: list[Any] = []


def planned(function: F) -> F:
    """Cache `function` by its arguments, which determine everything about a launch."""
    kept = lru_cache(maxsize=MOST)(function)
    _planners.append(kept)
    return kept  # type: ignore[return-value]


class Launch:
    """A kernel with its grid, sizes and constants; a call adds the addresses.

    `sizes` are the kernel's integers that the compiler specialises on; numbers that change from
    call to call come after them and are marked do_not_specialize, or are floats. `constants` are
    all of the kernel's `tl.constexpr`, its last parameters, and the launch's options.
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
        """Launch on the current device and stream; the tensors' dtypes never change."""
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
        compiled = self._compiled.get(key)
        if compiled is None:
            self._compile(key, tensors, changing)
            return
        kernel, constants = compiled
        stream = driver.get_current_stream(device)
        enter, leave = _hooks()
        metadata = None
        numbers = (*self._sizes, *changing, *constants)
        if enter is not None:
            metadata = kernel.launch_metadata(self._grid, stream, *passed, *numbers)
        x, y, z = self._grid
        kernel.run(
            x, y, z, stream, kernel.function, kernel.packed_metadata, metadata, enter, leave,
            *passed, *numbers,
        )  # fmt: skip

    def _compile(self, key: Any, tensors: Sequence[Any], changing: tuple[float, ...]) -> None:
        """Launch through Triton, which compiles the kernel, and keep the compiled kernel."""
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
    """The hooks around a launch, such as a profiler's; None where none is set."""
    runtime = triton.knobs.runtime
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
    hooked = getattr(enter, "calls", enter) or getattr(leave, "calls", leave)
    return (enter, leave) if hooked else (None, None)


def ceil_div(count: int, size: int) -> int:
    """The number of blocks of `size` that hold `count`; triton.cdiv is slow outside of kernels."""
    return -(-count // size)


def layout(shape: Sequence[int], strides: Sequence[int], block: Sequence[int]) -> dict[str, Any]:
    """The fields of a tensor descriptor but for its matrix, for Hopper's tensor memory accelerator.

    Rows must be contiguous and begin at multiples of 16 bytes.
    """
    return {
        "shape": [*shape], "strides": [*strides], "block_shape": [*block],
        "padding": "zero", "round_f32_to_tf32": False,
    }  # fmt: skip


def descriptor(matrix: Tensor, laid_out: dict[str, Any]) -> TensorDescriptor:
    """The matrix as a tensor descriptor, without the constructor's checks: the plan made them."""
    made = TensorDescriptor.__new__(TensorDescriptor)
    made.__dict__ = {**laid_out, "base": matrix}
    return made


def forget() -> None:
    """Clear every plan and its compiled kernels, for another driver."""
    for planner in _planners:
        planner.cache_clear()
