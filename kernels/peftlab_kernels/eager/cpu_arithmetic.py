"""How a CPU multiplies 16-bit and 8-bit matrices fastest, by measurement of each product.

Each question's candidates are of one precision class. Between 16 and 8 bits it is never
the clock that chooses.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import torch

from peftlab_kernels import autotune
from peftlab_kernels.eager import products
from peftlab_kernels.eager.int8_products import ENGINES, Engine, largest_code, multiplier

CPU_PRODUCTS = ("x @ W.T", "dy @ W")
"""The products that `cpu_arithmetic` and `int8_engine` are asked about."""

QUESTIONS = tuple(
    f"{dtype} {product}" for dtype in ("bfloat16", "float16", "int8") for product in CPU_PRODUCTS
)
"""Every question this file asks `autotune`."""

_PROBE = (512, 1024, 1024)
"""M, K, N of the products that are timed on a CPU: 1 GFLOP each."""

_QLINEAR_PROBE = """
import torch
from peftlab_kernels.eager.int8_products import multiplier
codes = torch.tensor([[1, -2], [127, -127]], dtype=torch.int8)
rows = torch.tensor([[3, -63], [63, 0]], dtype=torch.int8)
found = multiplier("qlinear", codes, transposed=False)(rows)
assert torch.equal(found, rows.float() @ codes.float().T), found
"""


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def cpu_arithmetic(dtype: str, product: str) -> str:
    """`native` or `fp32`: how a CPU multiplies 16-bit matrices faster."""
    return autotune.choose(
        f"{dtype} {product}",
        torch.device("cpu"),
        lambda: _candidates(getattr(torch, dtype), product),
        default="native" if torch.backends.cpu.get_cpu_capability() != "AVX2" else "fp32",
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def int8_engine(product: str) -> Engine:
    """The engine of `int8_products` that multiplies 8-bit matrices fastest on this CPU."""
    exact: Engine = "int_mm" if has_int8_units() else "fp32"
    answer = autotune.choose(
        f"int8 {product}",
        torch.device("cpu"),
        lambda: _int8_candidates(product),
        default=exact if has_int8_units() or why_not_qlinear() else "qlinear",
    )
    if answer == "int_mm" and why_not_int_mm():  # replayed from elsewhere
        return exact
    return next((engine for engine in ENGINES if engine == answer), exact)


def cpu_answer(question: str) -> str:
    """This machine's answer to one of `QUESTIONS`."""
    dtype, _, product = question.partition(" ")
    ask: Callable[..., str] = int8_engine if dtype == "int8" else cpu_arithmetic
    return ask(product) if dtype == "int8" else ask(dtype, product)


def has_int8_units() -> bool:
    """Whether the CPU adds products of 8-bit numbers in 32 bits (VNNI), and oneDNN may use that."""
    held_to = autotune.onednn_limit() or "ALL"
    # Not AVX2_VNNI, which are units of their own.
    allowed = held_to in {"ALL", "DEFAULT"} or held_to.startswith(("AVX512_CORE_", "AVX10_"))
    return allowed and bool(torch.cpu._is_vnni_supported())


def why_not_int_mm() -> str | None:
    """Why torch's integer product must not be used here, in words; None where it is exact.

    torch asks the processor, not oneDNN, whether sums are of 32 bits; without VNNI it loops itself.
    """
    if torch.cpu._is_vnni_supported() and not has_int8_units():
        return f"held to {autotune.onednn_limit()}, oneDNN lets its sums saturate in 16 bits"
    return None


@cache
def why_not_qlinear() -> str | None:
    """Why oneDNN's private product must not be used here, in words; None where it works.

    Tried in a process of its own: what torch changes about it may end the process.
    """
    package = str(Path(__file__).absolute().parents[2])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    try:
        tried = subprocess.run(
            [sys.executable, "-c", _QLINEAR_PROBE],
            env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=120,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"it could not be tried: {error}"
    if tried.returncode < 0:
        return f"trying it ended a process with signal {-tried.returncode}"
    if tried.returncode:
        return (tried.stderr.strip().splitlines() or ["it failed without a word"])[-1]
    return None


def _candidates(dtype: torch.dtype, product: str) -> Mapping[str, Callable[[], object]]:
    rows, columns, outs = _PROBE
    weight = torch.ones(outs, columns, dtype=dtype, device="cpu")
    if product == "x @ W.T":
        x = torch.ones(rows, columns, dtype=dtype, device="cpu")
        return {
            "native": lambda: products.forward(x, weight, None, transposed=False),
            "fp32": lambda: products.forward(x.float(), weight, None, transposed=False).to(dtype),
        }
    dy = torch.ones(rows, outs, dtype=dtype, device="cpu")
    return {
        "native": lambda: products.backward(dy, weight, transposed=False),
        "fp32": lambda: products.backward(dy.float(), weight, transposed=False).to(dtype),
    }


def _int8_candidates(product: str) -> Mapping[str, Callable[[], object]]:
    """qlinear only without VNNI: a bit less of precision must buy what nothing else does."""
    rows, columns, outs = _PROBE
    codes = torch.ones(outs, columns, dtype=torch.int8, device="cpu")
    transposed = product == "dy @ W"
    left = torch.ones(rows, outs if transposed else columns, dtype=torch.int8, device="cpu")

    def run(engine: Engine) -> Callable[[], object]:
        left.fill_(largest_code(engine))
        return lambda: multiplier(engine, codes, transposed=transposed)(left)

    engines: list[Engine] = ["fp32"]
    if not why_not_int_mm():
        engines.append("int_mm")
    if not (has_int8_units() or why_not_qlinear()):
        engines.append("qlinear")
    return {engine: run(engine) for engine in engines}
