"""The dtypes of a model at rest and of its arithmetic: one rule for every method.

Trainable tensors are fp32. Frozen ones are stored in the checkpoint's dtype. Activations are bf16
where the device has units for it, else fp32. A CPU without bf16 units multiplies 16-bit matrices
a hundred times slower than fp32 ones: there a 16-bit checkpoint stays in its dtype and computes in
fp32, by layers that widen their weights (`fusion.fuse` with fp32 activations).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from peftlab.errors import CheckFailed

DType = Literal["auto", "float32", "bfloat16", "float16"]

_UNITS = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16"})
"""Flags of /proc/cpuinfo for bf16 matrix products: x86's two, Arm's two."""


@dataclass(frozen=True, slots=True)
class Precision:
    """The dtype of frozen tensors at rest and of the arithmetic, with notes for the user."""

    at_rest: torch.dtype
    compute: torch.dtype
    notes: tuple[str, ...] = ()

    @property
    def fp32_activations(self) -> bool:
        """Whether arithmetic is fp32 over other weights: the model must be fused for that."""
        return self.compute is torch.float32 and self.at_rest is not torch.float32


@cache
def cpu_has_bf16_units() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return False
    return not _UNITS.isdisjoint(cpuinfo.read_text(encoding="utf-8", errors="replace").split())


def has_bf16_units(device: str) -> bool:
    """Whether bf16 arithmetic is fast on a device type ("cpu", "cuda", ...)."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device == "cpu" and cpu_has_bf16_units()


def training_device() -> str:
    """The device type that training will use."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def choose_precision(
    requested: DType, checkpoint: torch.dtype, device: str, *, fp32_at_rest: bool = False
) -> Precision:
    """Decide both dtypes from the requested one, the checkpoint's, and the device.

    `fp32_at_rest`: weights are never in 16 bits while the arithmetic is fp32.
    Raises `CheckFailed` for a 16-bit dtype that the device has no units for, and for float16 on any
    CPU.
    """
    units = has_bf16_units(device)
    if requested == "float32":
        return Precision(torch.float32, torch.float32)
    if requested == "float16" and not (device == "cuda" and units):
        where = "a CPU" if device == "cpu" else f"this {_called(device)}"
        raise CheckFailed(
            f"model.dtype is float16, in which {where} cannot train (slow products, underflow of "
            "gradients); set model.dtype to auto or float32."
        )
    if requested == "bfloat16" and not units:
        raise CheckFailed(
            f"model.dtype is bfloat16, but this {_called(device)} has no bf16 units: each step "
            "would take up to 150 times as long as in float32; set model.dtype to auto or float32."
        )
    if requested in {"bfloat16", "float16"}:
        return Precision(getattr(torch, requested), torch.bfloat16)
    return _automatic(checkpoint, device, units, fp32_at_rest)


def _called(device: str) -> str:
    """A device type in messages."""
    return {"cpu": "CPU", "cuda": "GPU"}.get(device, device)


def _automatic(checkpoint: torch.dtype, device: str, units: bool, fp32_at_rest: bool) -> Precision:
    name = str(checkpoint).removeprefix("torch.")
    if not units:
        if checkpoint is torch.float32:
            return Precision(torch.float32, torch.float32)
        if device == "cpu" and not fp32_at_rest:
            note = (
                f"the checkpoint is {name} and this CPU has no bf16 units: frozen weights stay "
                f"in {name}, arithmetic and activations are float32"
            )
            return Precision(checkpoint, torch.float32, (note,))
        note = (
            f"the checkpoint is {name} and this {_called(device)} has no bf16 units: it is "
            "loaded in float32, which takes twice its size in memory"
        )
        return Precision(torch.float32, torch.float32, (note,))
    if checkpoint is torch.float16 and device == "cpu":
        # Layer norms on a CPU do not support fp16 weights with bf16 activations.
        note = (
            "the checkpoint is float16 and this CPU computes in bfloat16: it is loaded in bfloat16"
        )
        return Precision(torch.bfloat16, torch.bfloat16, (note,))
    return Precision(checkpoint, torch.bfloat16)
