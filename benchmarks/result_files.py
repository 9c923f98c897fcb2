"""Results as files: `<case>--<machine>.json`, each with the environment it was measured in."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

from peftlab.measure.environment import describe_environment

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"
_SOURCES = ("kernels", "peftlab", "benchmarks")


def cpu_kind() -> str:
    """The processor in a file's name, with its arithmetic: `xeon-avx512-bf16-vnni`.

    `xeon-as-avx2` where torch is limited to AVX2 (ATEN_CPU_CAPABILITY=avx2).
    """
    cpu = describe_environment()["cpu"]
    arithmetic = _slug(cpu["arithmetic"].removesuffix(" only"))
    limited = arithmetic.startswith("avx512") and _capability() == "AVX2"
    return f"{_slug(_model(cpu['model']))}-{'as-avx2' if limited else arithmetic}"


def gpu_kind() -> str:
    """The GPU in a file's name: `h100-80gb-hbm3`; the processor without a GPU."""
    if not torch.cuda.is_available():
        return cpu_kind()
    return _slug(torch.cuda.get_device_name().removeprefix("NVIDIA "))


def has_bf16_units() -> bool:
    """Whether torch multiplies bf16 matrices faster than fp32 on this processor."""
    return "BF16" in describe_environment()["cpu"]["arithmetic"] and _capability() != "AVX2"


def _capability() -> str:
    return torch.backends.cpu.get_cpu_capability()


@cache
def environment() -> dict[str, Any]:
    """Device, versions, threads, command and commit, in JSON values."""
    return {
        "command": " ".join(Path(word).name if "/" in word else word for word in sys.argv),
        "commit": commit(),
        "sources": sources_digest(),
        **describe_environment(),
    }


def commit() -> dict[str, Any]:
    """The commit and whether the sources are unchanged; unknown outside a git checkout."""
    head = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--", *(f"{folder}/*.py" for folder in _SOURCES))
    return {"id": head or "unknown", "clean": None if head is None else not changed}


def sources_digest() -> str:
    """A digest of every Python source, which works without git too."""
    digest = hashlib.sha256()
    for folder in _SOURCES:
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            digest.update(str(path.relative_to(REPOSITORY)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write the result with its environment, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result | {"environment": environment()}, indent=1)
    part = path.with_suffix(".part")
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(path)


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(REPOSITORY), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _model(name: str) -> str:
    """The family in a processor's name: `AMD EPYC 7763 64-Core Processor` is an EPYC."""
    plain = re.sub(r"\((R|TM)\)|@.*", " ", name, flags=re.IGNORECASE)
    noise = {"amd", "intel", "cpu", "processor", "with"}
    words = [word for word in plain.split() if word.lower() not in noise]
    return words[0] if words else "cpu"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
