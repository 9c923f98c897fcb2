"""Launching a kernel again without binding its arguments again.

Triton's own launch takes as long as a small kernel runs: it binds every argument by name, and asks
the driver of every pointer whether a GPU can read it. What a compiled kernel depends on is less:
dtypes, alignments, and of sizes whether they are 1 or multiples of 16. `launch` keeps what Triton
compiled by just that, and hands it addresses. A new combination goes Triton's whole way.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
from torch import Tensor
from torch.nn import Parameter
from triton.tools.tensor_descriptor import TensorDescriptor


class _Known(NamedTuple):
    kernel: Any
    fixed: tuple[bool, ...]
    """Per argument before the constants whether its value is nothing to the compiler."""
    compiled: dict[tuple[Any, ...], Any]


_known: dict[int, _Known] = {}
"""By the kernel's identity: Triton's own hash of one is slow."""


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """`kernel[grid](*arguments, **constants)` on the current device and stream.

    `arguments` are all that are no `tl.constexpr`, in the kernel's order; `constants` the others
    and the launch's options, in any one order for a kernel. Tensors must stay alive in the caller
    until this returns, which is when the launch is queued.
    """
    known = _known.get(id(kernel))
    if known is None:
        known = _known[id(kernel)] = _Known(kernel, _what_is_fixed(kernel), {})
    if not known.fixed:  # the interpreter's
        kernel[grid](*arguments, **constants)
        return
    driver = triton.runtime.driver.active
    device = driver.get_current_device()
    key: list[Any] = [device, *constants.values()]
    passed: list[Any] = []
    for argument, is_fixed in zip(arguments, known.fixed, strict=True):
        kind = type(argument)
        if kind is int:
            passed.append(argument)
            if not is_fixed:
                # Whether it is 1, whether 16 divides it, and the bits past an int32's.
                key.append((argument == 1) + 2 * (argument & 15 == 0) + (argument >> 31 << 2))
        elif kind is Tensor or kind is Parameter:
            address = argument.data_ptr()
            passed.append(address)
            key.append(argument.dtype)
            key.append(address & 15 == 0)
        else:
            passed.append(argument)
            if kind is TensorDescriptor:
                key.append((argument.base.dtype, *argument.block_shape))
            elif kind is not float:  # of which it knows nothing but that it is one
                key.append(kind)
    combination = tuple(key)
    found = known.compiled.get(combination)
    if found is None:
        made = kernel[grid](*arguments, **constants)
        if hasattr(made, "packed_metadata") and hasattr(made, "function"):
            last = tuple(constants[p.name] for p in kernel.params if p.is_constexpr)
            known.compiled[combination] = made, last
        return
    made, last = found
    stream = driver.get_current_stream(device)
    enter, leave = _hooks()
    told = None if enter is None else made.launch_metadata(grid, stream, *passed, *last)
    x, y, z = (*grid, 1, 1)[:3]
    made.run(
        x, y, z, stream, made.function, made.packed_metadata, told, enter, leave, *passed, *last
    )


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


def _what_is_fixed(kernel: Any) -> tuple[bool, ...]:
    parameters = getattr(kernel, "params", None)
    if parameters is None:
        return ()
    first = sum(not p.is_constexpr for p in parameters)
    if any(p.is_constexpr for p in parameters[:first]):
        raise TypeError(f"constants of {kernel.__name__} must come after its other arguments")
    return tuple(p.do_not_specialize for p in parameters[:first])
