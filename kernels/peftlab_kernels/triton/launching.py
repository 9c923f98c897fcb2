"""Launching a kernel again without binding its arguments again.

Triton's own launch takes as long as a small kernel runs: it binds every argument by name, and asks
the driver of every pointer whether a GPU can read it. What a compiled kernel depends on is less:
dtypes, alignments, and of some sizes whether they are 1 or multiples of 16. `launch` keeps what
Triton compiled by just that and hands it addresses. A new combination goes Triton's whole way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


class _Known(NamedTuple):
    kernel: Any
    seen: Callable[[Sequence[float]], object]
    """Of the numbers, those whose value the compiler looks at."""
    constants: tuple[str, ...]
    compiled: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]]


_known: dict[int, _Known] = {}
"""By the kernel's identity: Triton's own hash of one is slow."""

MOST = 4096
"""Combinations kept of a kernel; sizes that follow M make new ones for every M."""


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    tensors: Sequence[Tensor | TensorDescriptor | None],
    numbers: Sequence[float],
    **constants: Any,
) -> None:
    """`kernel[grid](*tensors, *numbers, **constants)` on the current device and stream.

    `constants` are all of the kernel's `tl.constexpr`, which come last in it, and the launch's
    options, for one kernel always in one order.
    """
    known = _known.get(id(kernel)) or _remember(kernel, len(tensors), numbers)
    if not known.constants:  # the interpreter's
        kernel[grid](*tensors, *numbers, **constants)
        return
    driver = triton.runtime.driver.active
    device = driver.get_current_device()
    passed: list[Any] = []
    kinds: list[Any] = []
    for tensor in tensors:
        if isinstance(tensor, Tensor):
            address = tensor.data_ptr()
            passed.append(address)
            kinds.append(tensor.dtype)
            if address & 15:
                kinds.append("unaligned")
        else:
            passed.append(tensor)
            kinds.append(None if tensor is None else (tensor.base.dtype, *tensor.block_shape))
    combination = (device, known.seen(numbers), *kinds, *constants.values())
    found = known.compiled.get(combination)
    if found is None:
        made = kernel[grid](*tensors, *numbers, **constants)
        if hasattr(made, "packed_metadata") and hasattr(made, "function"):
            if len(known.compiled) >= MOST:
                known.compiled.clear()
            known.compiled[combination] = made, tuple(constants[n] for n in known.constants)
        return
    made, last = found
    stream = driver.get_current_stream(device)
    enter, leave = _hooks()
    told = None
    if enter is not None:
        told = made.launch_metadata(grid, stream, *passed, *numbers, *last)
    x, y, z = (*grid, 1, 1)[:3]
    made.run(
        x, y, z, stream, made.function, made.packed_metadata, told, enter, leave,
        *passed, *numbers, *last,
    )  # fmt: skip


def _remember(kernel: Any, tensors: int, numbers: Sequence[float]) -> _Known:
    parameters = getattr(kernel, "params", ())
    constants = tuple(p.name for p in parameters if p.is_constexpr)
    first = tensors + len(numbers)
    if constants and tuple(p.name for p in parameters[first:]) != constants:
        raise TypeError(f"the constants of {kernel.__name__} must come after its other arguments")
    # Of a float nothing counts but that it is one.
    looked_at = [
        at
        for at, (parameter, number) in enumerate(zip(parameters[tensors:], numbers, strict=False))
        if not parameter.do_not_specialize and isinstance(number, int)
    ]
    seen = itemgetter(*looked_at) if looked_at else len
    return _known.setdefault(id(kernel), _Known(kernel, seen, constants, {}))


def _hooks() -> tuple[Any, Any]:
    """What is called around a launch, a profiler's; None where nobody listens."""
    runtime = triton.knobs.runtime
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
    listened = getattr(enter, "calls", enter) or getattr(leave, "calls", leave)
    return (enter, leave) if listened else (None, None)


def ceil_div(count: int, size: int) -> int:
    """How many blocks of `size` hold `count`; Triton's own cdiv is slow outside of kernels."""
    return -(-count // size)


def descriptor(matrix: Tensor, block: list[int]) -> TensorDescriptor:
    """The matrix for Hopper's unit that loads whole blocks; rows contiguous, 16 bytes aligned.

    Made without the checks of its constructor: `configurations.regular` made them.
    """
    found = TensorDescriptor.__new__(TensorDescriptor)
    vars(found).update(
        base=matrix, shape=[*matrix.shape], strides=[*matrix.stride()], block_shape=block,
        padding="zero", round_f32_to_tf32=False,
    )  # fmt: skip
    return found


def forget() -> None:
    """Let go of what was compiled: another driver is there."""
    _known.clear()
