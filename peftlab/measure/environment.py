"""The machine and the versions behind a result."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_PACKAGES = (
    "peftlab", "torch", "transformers", "peft", "accelerate", "datasets", "safetensors",
    "tokenizers", "numpy", "scikit-learn", "bitsandbytes", "triton", "trl", "liger-kernel",
)  # fmt: skip


def describe_environment() -> dict[str, Any]:
    """Versions, processor, devices and optional packages as JSON values; sizes in bytes."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "cpu": {
            "model": _cpu_model(),
            "arithmetic": cpu_arithmetic(_cpu_flags()),
            "cores": _usable_cores(),
            "threads": torch.get_num_threads(),
            "memory": _memory(),
        },
        "devices": [
            {
                "name": torch.cuda.get_device_name(index),
                "memory": torch.cuda.get_device_properties(index).total_memory,
                "capability": ".".join(map(str, torch.cuda.get_device_capability(index))),
            }
            for index in range(torch.cuda.device_count())
        ],
        "optional": optional_packages(cuda=torch.cuda.is_available()),
    }


def optional_packages(*, cuda: bool) -> dict[str, dict[str, Any]]:
    """Each optional package: whether it is usable here, else why not."""
    reasons = {
        "bitsandbytes": _why_missing("bitsandbytes", extra="quant"),
        "triton": _why_missing("triton", extra="kernels")
        or (None if cuda else "there is no CUDA device"),
        "tensorboard": _why_missing("tensorboard", extra="tensorboard"),
        "liger-kernel": _why_missing("liger_kernel", extra="liger")
        or (None if cuda else "there is no CUDA device"),
    }
    return {name: {"usable": reason is None, "why_not": reason} for name, reason in reasons.items()}


def cpu_arithmetic(flags: frozenset[str]) -> str:
    """The widest arithmetic of a processor with these flags."""
    if not flags:
        return "unknown"
    if "avx512f" in flags:
        units = [
            name
            for flag, name in (
                ("avx512_bf16", "BF16"), ("avx512_vnni", "VNNI"), ("amx_bf16", "AMX-BF16"),
            )
            if flag in flags
        ]  # fmt: skip
        return "-".join(["AVX512", *units]) if units else "AVX512 without 16-bit or int8 units"
    if "avx2" in flags:
        return "AVX2 with VNNI" if "avx_vnni" in flags else "AVX2 only"
    if "asimd" in flags:
        return "NEON with BF16" if "bf16" in flags else "NEON"
    return "baseline"


def _why_missing(module: str, *, extra: str) -> str | None:
    if find_spec(module) is not None:
        return None
    return f"not installed: pip install 'peftlab[{extra}]'"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_info() -> Mapping[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _cpu_model() -> str:
    return _cpu_info().get("model name") or platform.processor() or platform.machine()


def _cpu_flags() -> frozenset[str]:
    info = _cpu_info()
    return frozenset((info.get("flags") or info.get("Features") or "").split())


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
