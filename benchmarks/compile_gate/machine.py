"""Compiling Triton kernels without a GPU, and reading the machine code.

The launch code itself runs, on meta tensors under a driver that only has a target: the kernel is
compiled as a launch would compile it, to the divisibility of each argument. The machine code is
then read with the disassembler that comes with Triton.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

PER_CTA = {"sm_80": 163, "sm_86": 99, "sm_90": 227, "sm_120": 99}
"""The limit of shared memory per program, in KiB."""

PROCESSOR = {
    "sm_80": (64, 32, 164),
    "sm_86": (48, 16, 100),
    "sm_90": (64, 32, 228),
    "sm_120": (48, 24, 100),
}
"""Warps, programs and KiB of shared memory that a processor holds; 64 Ki registers each."""


def gpu_target(name: str) -> GPUTarget:
    """`sm_90` or `gfx942` as Triton writes it."""
    if name.startswith("gfx"):
        return GPUTarget("hip", name, 64)
    return GPUTarget("cuda", int(name.removeprefix("sm_")), 32)


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel with the arguments it was launched with."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, int]

    def specialization(self) -> dict[str, str]:
        """The properties of the arguments that the compiler specialises on."""
        return {
            parameter.name: _seen(self.arguments[parameter.name], parameter)
            for parameter in self.kernel.params
        }

    def digest(self, target: str) -> str:
        """A digest of everything that the machine code depends on but Triton's version."""
        text = repr((
            sorted(_sources(self.kernel).items()), sorted(self.specialization().items()),
            sorted(self.options.items()), target,
        ))  # fmt: skip
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def launches_of(call: Callable[[], object]) -> list[Launch]:
    """The kernels that `call` launches; none of them runs."""
    noted: list[Launch] = []

    def note(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {k: kwargs.pop(k) for k in ("num_warps", "num_stages") if k in kwargs}
        bound = inspect.signature(kernel.fn).bind(*args, **kwargs)
        noted.append(Launch(kernel, dict(bound.arguments), options))

    with (
        mock.patch.object(triton.runtime.driver, "_active", mock.Mock()),
        mock.patch.object(JITFunction, "run", note),
    ):
        call()
    return noted


@contextmanager
def compiling_for(target: str) -> Iterator[None]:
    """Make Triton compile for a GPU of this kind, with an empty cache."""
    driver = mock.Mock()
    driver.get_current_target.return_value = gpu_target(target)
    driver.get_current_device.return_value = target
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(triton.runtime.driver, "_active", driver),
        triton.knobs.cache.scope(),
    ):
        triton.knobs.cache.dir = folder
        yield


def compile_launch(launch: Launch, target: str) -> dict[str, Any]:
    """The figures of the compiled launch; raises what Triton raises."""
    with compiling_for(target):
        compiled = launch.kernel.run(**launch.arguments, **launch.options, grid=(1,), warmup=True)
    shared = int(compiled.metadata.shared)
    if target.startswith("gfx"):
        return {"shared": shared} | _read_amd(compiled.asm["amdgcn"])
    figures = {"shared": shared} | _read_nvidia(compiled.asm["cubin"])
    figures["occupancy"] = _occupancy(
        target, figures["registers"], shared, launch.options.get("num_warps", 4)
    )
    return figures


def _seen(value: Any, parameter: Any) -> str:
    if parameter.is_constexpr or value is None:
        return repr(value)
    if isinstance(value, TensorDescriptor):
        return f"{value.base.dtype} {value.block_shape}"
    if hasattr(value, "dtype"):
        return str(value.dtype)
    if isinstance(value, float):
        return "float"
    if parameter.do_not_specialize:
        return "int"
    return "1" if value == 1 else f"int{' divisible by 16' if value % 16 == 0 else ''}"


@cache
def _sources(kernel: Any) -> dict[str, str]:
    """The kernel's code and that of our functions it calls, free of comments and docstrings."""
    sources: dict[str, str] = {}
    waiting = [kernel]
    while waiting:
        function = waiting.pop()
        if function.__name__ in sources or function.fn.__module__.startswith("triton."):
            continue
        tree = ast.parse(inspect.cleandoc("\n" + function.src))
        definition = tree.body[0]
        assert isinstance(definition, ast.FunctionDef)
        if ast.get_docstring(definition) is not None:
            definition.body = definition.body[1:]
        sources[function.__name__] = ast.unparse(definition)
        named = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        around = function.fn.__globals__
        waiting += [around[n] for n in named if isinstance(around.get(n), JITFunction)]
    return sources


def _read_nvidia(cubin: bytes) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        listing = _tool("cuobjdump", "-sass", file.name)
    code = [
        (int(at, 16), text)
        for at, text in re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", listing, re.MULTILINE)
    ]
    loop = _main_loop(code)
    everything = [text for _, text in code]
    return {
        "registers": int(_number(r"REG:(\d+)", usage)),
        "stack": int(_number(r"STACK:(\d+)", usage)),
        "spills": _count(everything, r"\b(LDL|STL)\b"),
        "loop": len(loop),
        "loop_local": _count(loop, r"\b(LDL|STL)\b"),
        "loop_conversions": _count(loop, r"\b(F2F|F2FP|I2F|I2FP|F2I)\b"),
        "loop_shuffles": _count(loop, r"\bPRMT\b"),
        "loop_shared_stores": _count(loop, r"\bSTS\b"),
        "loop_products": _count(loop, _PRODUCT),
        "products": sorted(set(re.findall(r"\b[HIQ]G?MMA\.[0-9x]+", "\n".join(everything)))),
    }


_PRODUCT = r"\b(HG?MMA|IG?MMA|QG?MMA)\b|\bFFMA"


def _main_loop(code: list[tuple[int, str]]) -> list[str]:
    """Of the loops with no loop inside, the one that multiplies most.

    Waits on a barrier that jump back over the code before them have the loops inside.
    """
    spans = []
    for at, text in code:
        if (jump := re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)) and int(jump[1], 16) < at:
            spans.append((int(jump[1], 16), at))
    bodies = [
        [text for at, text in code if start <= at <= end]
        for start, end in spans
        if not any((a, b) != (start, end) and start <= a and b <= end for a, b in spans)
    ]
    return max(bodies, key=lambda body: (_count(body, _PRODUCT), len(body)), default=[])


def _read_amd(assembly: str) -> dict[str, Any]:
    return {
        "registers": int(_number(r"\.vgpr_count:\s+(\d+)", assembly)),
        "stack": int(_number(r"\.private_segment_fixed_size:\s+(\d+)", assembly)),
        "spills": int(_number(r"\.vgpr_spill_count:\s+(\d+)", assembly)),
        "products": sorted(set(re.findall(r"v_mfma_\w+", assembly))),
    }


def _occupancy(target: str, registers: int, shared: int, warps: int) -> int:
    """The number of programs that a processor holds at a time."""
    most_warps, most_programs, kibibytes = PROCESSOR[target]
    of_a_warp = -(-registers * 32 // 256) * 256
    return min(
        most_warps // warps,
        most_programs,
        65536 // of_a_warp // warps,
        kibibytes * 1024 // (shared + 1024),
    )


def _tool(name: str, *arguments: str) -> str:
    ran = subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True)
    return ran.stdout


def _number(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match[1] if match else "0"


def _count(lines: list[str], pattern: str) -> int:
    return sum(1 for line in lines if re.search(pattern, line))
