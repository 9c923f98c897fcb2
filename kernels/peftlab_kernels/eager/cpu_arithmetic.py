"""How a CPU multiplies 16-bit and 8-bit matrices fastest, by measurement of each product.

The candidates of a question are of one precision class: whether 16 or 8 bits are used is never
decided by measured time.
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
"""The products that `cpu_arithmetic` and `int8_engine` choose for."""

QUESTIONS = tuple(
    f"{dtype} {product}" for dtype in ("bfloat16", "float16", "int8") for product in CPU_PRODUCTS
)
"""Every question of this file to `autotune`."""

_PROBE = (512, 1024, 1024)
"""M, K, N of the products that are timed on a CPU: 1 GFLOP each."""

_QLINEAR_PROBE = """
import torch
from peftlab_kernels.eager.int8_products import multiplier
codes = torch.tensor([[1, -2], [127, -127]], dtype=torch.int8)
rows = torch.tensor([[3, -63], [63, 0]], dtype=torch.int8)
product = multiplier("qlinear", codes, transposed=False)(rows)
assert torch.equal(product, rows.float() @ codes.float().T), product
"""


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def cpu_arithmetic(dtype: str, product: str) -> str:
    """`native` or `fp32`: the faster way to multiply 16-bit matrices on this CPU."""
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
    answer: str = int8_engine(product) if dtype == "int8" else cpu_arithmetic(dtype, product)
    return answer


def has_int8_units() -> bool:
    """Whether the CPU sums products of 8-bit numbers in 32 bits (VNNI), and oneDNN may use that."""
    limit = autotune.onednn_limit() or "ALL"
    # Not AVX2_VNNI, a separate extension.
    allowed = limit in {"ALL", "DEFAULT"} or limit.startswith(("AVX512_CORE_", "AVX10_"))
    return allowed and bool(torch.cpu._is_vnni_supported())


def why_not_int_mm() -> str | None:
    """Why torch's integer product must not be used here; None where it is exact.

    torch checks the processor for VNNI, not oneDNN's limit; without VNNI it has its own loop.
    """
    if torch.cpu._is_vnni_supported() and not has_int8_units():
        return f"limited to {autotune.onednn_limit()}, oneDNN sums in 16 bits, which saturate"
    return None


@cache
def why_not_qlinear() -> str | None:
    """Why oneDNN's product of torch's quantiser must not be used here; None where it works.

    The operator is private: it is tried in a child process, which a changed operator may crash.
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
        return f"its trial run was ended by signal {-tried.returncode}"
    if tried.returncode:
        return (tried.stderr.strip().splitlines() or ["its trial run failed silently"])[-1]
    return None


def _candidates(dtype: torch.dtype, product: str) -> Mapping[str, Callable[[], object]]:
    rows, in_features, out_features = _PROBE
    weight = torch.ones(out_features, in_features, dtype=dtype, device="cpu")
    if product == "x @ W.T":
        x = torch.ones(rows, in_features, dtype=dtype, device="cpu")
        return {
            "native": lambda: products.forward(x, weight, None, transposed=False),
            "fp32": lambda: products.forward(x.float(), weight, None, transposed=False).to(dtype),
        }
    dy = torch.ones(rows, out_features, dtype=dtype, device="cpu")
    return {
        "native": lambda: products.backward(dy, weight, transposed=False),
        "fp32": lambda: products.backward(dy.float(), weight, transposed=False).to(dtype),
    }


def _int8_candidates(product: str) -> Mapping[str, Callable[[], object]]:
    """qlinear only without VNNI: only there its lost bit of precision buys speed."""
    rows, in_features, out_features = _PROBE
    codes = torch.ones(out_features, in_features, dtype=torch.int8, device="cpu")
    transposed = product == "dy @ W"
    inner = out_features if transposed else in_features
    left = torch.ones(rows, inner, dtype=torch.int8, device="cpu")

    def run(engine: Engine) -> Callable[[], object]:
        left.fill_(largest_code(engine))
        return lambda: multiplier(engine, codes, transposed=transposed)(left)

    engines: list[Engine] = ["fp32"]
    if not why_not_int_mm():
        engines.append("int_mm")
    if not (has_int8_units() or why_not_qlinear()):
        engines.append("qlinear")
    return {engine: run(engine) for engine in engines}
