"""The backends: what each of them can compute, and its kernels for a call.

`dispatch.BACKENDS` lists them. Within a backend the fastest arithmetic is chosen by measurement
(`autotune`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from peftlab_kernels import autotune
from peftlab_kernels.eager.backend import EagerKernels
from peftlab_kernels.eager.cpu_arithmetic import CPU_PRODUCTS, cpu_arithmetic, int8_engine
from peftlab_kernels.eager.int8_backend import EagerInt8Kernels
from peftlab_kernels.int8_format import Int8Weight
from peftlab_kernels.protocol import Call, Int8Kernels, Kernels, Needs


class TorchBackend:
    """Plain torch: computes every call on every device."""

    name = "torch"

    def why_not(self, call: Call) -> str | None:
        """See `protocol.Backend`."""
        return None

    def kernels(self, call: Call) -> Kernels:
        """See `protocol.Backend`."""
        return eager_kernels(call.x)

    def int8_kernels(self, call: Call) -> Int8Kernels:
        """See `protocol.Backend`."""
        return eager_int8_kernels(call.x)


class TritonBackend:
    """The Triton kernels; Triton is imported only for a call on a device that it supports."""

    name = "triton"

    def why_not(self, call: Call) -> str | None:
        """See `protocol.Backend`."""
        if torch.compiler.is_compiling():
            return "torch.compile is tracing, which fuses the torch path itself"
        if not call.x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
            return f"the tensors are on {call.x.device.type}, and Triton needs a CUDA device"
        try:
            from peftlab_kernels.triton.backend import why_not
        except ImportError as error:
            return (
                f"Triton cannot be imported ({error}); install it with "
                "pip install 'peftlab[kernels]'"
            )
        return why_not(call.x, call.weight, call.lora_a, call.lora_b)

    def kernels(self, call: Call) -> Kernels:
        """With the base product by Triton or cuBLAS, whichever is faster for the shape."""
        from peftlab_kernels.triton.backend import TritonKernels

        x, weight = call.x, call.weight
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            return TritonKernels(base="cublas")  # nothing can be timed inside a CUDA graph
        if isinstance(weight, Int8Weight):
            return TritonKernels(base="cublas")  # of the dequantised copy
        if not x.is_cuda or not x.shape[0]:  # nothing to measure on, or with
            return TritonKernels(base="epilogue")
        rows = 1 << (x.shape[0] - 1).bit_length()
        rank = 0 if call.lora_a is None else call.lora_a.shape[0]
        question = _question(x.dtype, rows, weight.shape, call.transposed, rank, call.dropout > 0)

        def candidates() -> Mapping[str, Callable[[], object]]:
            sample: Any = torch.randn_like(x[:1]).expand(rows, -1).contiguous()
            timed = call._replace(x=sample)
            return {
                "cublas": lambda: _both_passes(TritonKernels(base="cublas"), timed),
                "epilogue": lambda: _both_passes(TritonKernels(base="epilogue"), timed),
            }

        answer = autotune.choose(question, x.device, candidates, default="cublas")
        return TritonKernels(base="epilogue" if answer == "epilogue" else "cublas")

    def int8_kernels(self, call: Call) -> Int8Kernels:
        """See `protocol.Backend`."""
        from peftlab_kernels.triton.int8_backend import TritonInt8Kernels

        return TritonInt8Kernels()


def eager_kernels(x: Tensor) -> EagerKernels:
    """The torch path with the arithmetic that is fast for x's dtype on this machine."""
    if x.device.type != "cpu" or x.dtype not in {torch.bfloat16, torch.float16}:
        return EagerKernels()
    name = str(x.dtype).removeprefix("torch.")
    forward, backward = (cpu_arithmetic(name, product) for product in CPU_PRODUCTS)
    return EagerKernels(
        "native" if forward == "native" else "fp32", "native" if backward == "native" else "fp32"
    )


def eager_int8_kernels(x: Tensor) -> EagerInt8Kernels:
    """The torch path over 8-bit operands with the engines that are fast on this machine.

    Off the CPU the codes are widened: torch's integer product supports only some shapes there.
    """
    if x.device.type != "cpu":
        return EagerInt8Kernels("fp32", "fp32")
    forward, backward = (int8_engine(product) for product in CPU_PRODUCTS)
    native = x.dtype is not torch.bfloat16 or _native_bf16()
    return EagerInt8Kernels(forward, backward, native)


def thin_dtype(x: Tensor) -> torch.dtype:
    """The dtype of the thin products of a call with this x, where torch computes them."""
    if x.dtype is torch.float16:
        return x.dtype if x.device.type != "cpu" else torch.float32
    narrow = x.dtype is torch.bfloat16 and x.device.type == "cpu" and not _native_bf16()
    return torch.float32 if narrow else x.dtype


def _native_bf16() -> bool:
    return all(cpu_arithmetic("bfloat16", product) == "native" for product in CPU_PRODUCTS)


@lru_cache(maxsize=4096)
def _question(
    dtype: torch.dtype, rows: int, weight: torch.Size, transposed: bool, rank: int, dropout: bool
) -> str:
    """The call as a question to `autotune`; cached, since every call of every layer needs it."""
    return (
        f"{str(dtype).removeprefix('torch.')} lora_linear M={rows} "
        f"W={'x'.join(map(str, weight))}{'T' if transposed else ''} R={rank}"
        f"{' dropout' if dropout else ''}"
    )


def _both_passes(kernels: Kernels, call: Call) -> None:
    x, weight, a, b, dropout, transposed = call
    out = kernels.forward(
        x, weight, None, a, b, scaling=1.0, dropout=dropout, transposed=transposed
    )
    trains = a is not None
    kernels.backward(
        out.y, x, weight, a, b, out.h, out.mask,
        scaling=1.0, dropout=dropout, transposed=transposed, needs=Needs(True, trains, trains),
    )  # fmt: skip
