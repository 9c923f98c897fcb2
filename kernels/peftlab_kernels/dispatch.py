"""Which backend computes a call: chosen once, in forward, and kept for its backward.

`auto` takes Triton where it can run and torch elsewhere, and within each the fastest arithmetic by
measurement (`autotune`). A backend that was asked for by name either computes or raises.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from peftlab_kernels import autotune
from peftlab_kernels.eager.backend import EagerKernels
from peftlab_kernels.eager.cpu_arithmetic import CPU_PRODUCTS, cpu_arithmetic, int8_engine
from peftlab_kernels.eager.int8_backend import EagerInt8Kernels
from peftlab_kernels.int8_format import Int8Weight
from peftlab_kernels.protocol import Int8Kernels, Kernels, Needs

Backend = Literal["auto", "torch", "triton"]
VARIABLE = "PEFTLAB_BACKEND"

_asked: list[tuple[Backend]] = []
"""The backends asked for by `use_backend`, innermost last; each in a tuple of its own."""


@contextmanager
def use_backend(backend: Backend) -> Iterator[None]:
    """Compute with this backend inside the `with`, in every thread of the process.

    Gradient checkpointing computes forward again in autograd's threads, which must agree. Raises
    `ValueError` for a backend there is not.
    """
    asked = (_checked(backend, "use_backend"),)
    _asked.append(asked)
    try:
        yield
    finally:
        # Not pop: another thread may have asked meanwhile.
        _asked[:] = [other for other in _asked if other is not asked]


def asked_backend() -> Backend:
    """What `use_backend`, else `PEFTLAB_BACKEND`, else the default asks for."""
    if _asked:
        return _asked[-1][0]
    return _checked(os.environ.get(VARIABLE) or "auto", VARIABLE)


def why_not_triton(
    x: Tensor,
    weight: Tensor | Int8Weight,
    lora_a: Tensor | None = None,
    lora_b: Tensor | None = None,
) -> str | None:
    """Why the Triton kernels cannot compute this call, in words; None where they can."""
    if torch.compiler.is_compiling():
        return "torch.compile is tracing, which fuses the torch path itself"
    if not x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the tensors are on {x.device.type}, and Triton needs a CUDA device"
    try:
        from peftlab_kernels.triton import backend
    except ImportError as error:
        return (
            f"Triton cannot be imported ({error}); install it with pip install 'peftlab[kernels]'"
        )
    return backend.why_not(x, weight, lora_a, lora_b)


def kernels_for(
    x: Tensor,
    weight: Tensor | Int8Weight,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    *,
    dropout: float,
    transposed: bool,
) -> Kernels:
    """The kernels for one call, on matrices as `protocol.Kernels` has them.

    Raises `RuntimeError`, with the reason, where Triton was asked for by name and cannot compute.
    """
    asked = asked_backend()
    if asked == "torch":
        return eager_kernels(x)
    reason = why_not_triton(x, weight, lora_a, lora_b)
    if reason is None:
        return _triton_kernels(x, weight, lora_a, lora_b, dropout, transposed)
    if asked == "triton":
        raise _refusal(reason)
    return eager_kernels(x)


def int8_kernels_for(
    x: Tensor, weight: Int8Weight, lora_a: Tensor | None = None, lora_b: Tensor | None = None
) -> Int8Kernels:
    """The kernels for one call with both operands in 8 bits; raises as `kernels_for` does."""
    asked = asked_backend()
    if asked == "torch":
        return eager_int8_kernels(x)
    reason = why_not_triton(x, weight, lora_a, lora_b)
    if reason is None:
        from peftlab_kernels.triton.int8_backend import TritonInt8Kernels

        return TritonInt8Kernels()
    if asked == "triton":
        raise _refusal(reason)
    return eager_int8_kernels(x)


def _refusal(reason: str) -> RuntimeError:
    return RuntimeError(
        f"the Triton kernels were asked for, but {reason}; ask for auto or torch instead"
    )


def eager_kernels(x: Tensor) -> EagerKernels:
    """The torch path with the arithmetic that is fast for x's dtype on this machine."""
    if x.device.type != "cpu" or x.dtype not in {torch.bfloat16, torch.float16}:
        return EagerKernels()
    name = str(x.dtype).removeprefix("torch.")
    forward, backward = (cpu_arithmetic(name, product) for product in CPU_PRODUCTS)
    return EagerKernels(
        "native" if forward == "native" else "fp32", "native" if backward == "native" else "fp32"
    )


def thin_dtype(x: Tensor) -> torch.dtype:
    """What the thin products of a call with this x are computed in, where torch computes them."""
    if x.dtype is torch.float16:
        return x.dtype if x.device.type != "cpu" else torch.float32
    narrow = x.dtype is torch.bfloat16 and x.device.type == "cpu" and not _native_bf16()
    return torch.float32 if narrow else x.dtype


def _native_bf16() -> bool:
    return all(cpu_arithmetic("bfloat16", product) == "native" for product in CPU_PRODUCTS)


def eager_int8_kernels(x: Tensor) -> EagerInt8Kernels:
    """The torch path over 8-bit operands with the engines that are fast on this machine.

    Off the CPU the codes are widened: torch's integer product takes only some shapes there.
    """
    if x.device.type != "cpu":
        return EagerInt8Kernels("fp32", "fp32")
    forward, backward = (int8_engine(product) for product in CPU_PRODUCTS)
    native = x.dtype is not torch.bfloat16 or _native_bf16()
    return EagerInt8Kernels(forward, backward, native)


def _triton_kernels(
    x: Tensor,
    weight: Tensor | Int8Weight,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    dropout: float,
    transposed: bool,
) -> Kernels:
    """Triton's, with the base product by Triton or cuBLAS, whichever is faster for the shape."""
    from peftlab_kernels.triton.backend import TritonKernels

    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return TritonKernels(base="cublas")  # nothing can be timed inside a CUDA graph
    if isinstance(weight, Int8Weight):
        return TritonKernels(base="cublas")  # of the dequantised copy
    if not x.is_cuda or not x.shape[0]:  # nothing to measure on, or with
        return TritonKernels(base="epilogue")
    rows = 1 << (x.shape[0] - 1).bit_length()
    rank = 0 if lora_a is None else lora_a.shape[0]
    question = _question(x.dtype, rows, weight.shape, transposed, rank, dropout > 0)

    def candidates() -> Mapping[str, Callable[[], object]]:
        sample: Any = torch.randn_like(x[:1]).expand(rows, -1).contiguous()
        adapter = (lora_a, lora_b)
        return {
            "cublas": lambda: _both_ways(TritonKernels(base="cublas"), sample, weight, adapter,
                                         dropout, transposed),
            "epilogue": lambda: _both_ways(TritonKernels(base="epilogue"), sample, weight, adapter,
                                           dropout, transposed),
        }  # fmt: skip

    answer = autotune.choose(question, x.device, candidates, default="cublas")
    return TritonKernels(base="epilogue" if answer == "epilogue" else "cublas")


@lru_cache(maxsize=4096)
def _question(
    dtype: torch.dtype, rows: int, weight: torch.Size, transposed: bool, rank: int, dropout: bool
) -> str:
    """A call as a choice is asked for; every call of every layer asks."""
    return (
        f"{str(dtype).removeprefix('torch.')} lora_linear M={rows} "
        f"W={'x'.join(map(str, weight))}{'T' if transposed else ''} R={rank}"
        f"{' dropout' if dropout else ''}"
    )


def _both_ways(
    kernels: Kernels,
    x: Tensor,
    weight: Tensor,
    adapter: tuple[Tensor | None, Tensor | None],
    dropout: float,
    transposed: bool,
) -> None:
    a, b = adapter
    out = kernels.forward(
        x, weight, None, a, b, scaling=1.0, dropout=dropout, transposed=transposed
    )
    trains = a is not None
    kernels.backward(
        out.y, x, weight, a, b, out.h, out.mask,
        scaling=1.0, dropout=dropout, transposed=transposed, needs=Needs(True, trains, trains),
    )  # fmt: skip


def _checked(backend: str, origin: str) -> Backend:
    if backend not in get_args(Backend):
        raise ValueError(
            f"{origin} asks for the backend {backend!r}; there are {', '.join(get_args(Backend))}"
        )
    return backend  # type: ignore[return-value]
