"""The matrix product and the rounding of every kernel, with the interpreter's workarounds."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_NAMES: dict[torch.dtype, tl.dtype] = {
    torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16,
}  # fmt: skip

_INTERPRETING = bool(triton.knobs.runtime.interpret)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """`acc + a b` in fp32. UPCAST: Triton's interpreter multiplies the bits of bf16, not values."""
    if UPCAST:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision=PRECISION)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def cast(value, dtype: tl.constexpr, UPCAST: tl.constexpr):
    """`value` rounded to `dtype`. UPCAST: the interpreter cuts fp32 off to bf16, so round first."""
    if UPCAST and dtype == tl.bfloat16 and value.dtype == tl.float32:
        bits = value.to(tl.uint32, bitcast=True)
        odd = (bits >> 16) & 1
        value = (bits + 0x7FFF + odd).to(tl.float32, bitcast=True)
    return value.to(dtype)


@triton.jit
def widen(x, dtype: tl.constexpr, UPCAST: tl.constexpr):
    """int8 codes as floats, which hold them exactly; a float `x` unchanged."""
    if x.dtype != tl.int8:
        return x
    if UPCAST:
        return cast(x.to(tl.float32), dtype, UPCAST)
    return x.to(dtype)


def in_triton(dtype: torch.dtype) -> tl.dtype:
    """The dtype as kernels name it."""
    return _NAMES[dtype]


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter: TRITON_INTERPRET=1 when they were imported."""
    return _INTERPRETING


def precision_of(dtype: torch.dtype) -> str:
    """`tf32` for fp32 products where torch's own may use it, else `ieee`; 16 bits ignore it."""
    if dtype is not torch.float32:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
