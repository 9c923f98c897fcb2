"""What the kernels are on this machine: the backend, why not the other, and measured autotune.

The rest of peftlab knows the kernels through this package alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from peftlab.errors import ConfigError
from peftlab_kernels import autotune, dispatch
from peftlab_kernels.eager import cpu_arithmetic


def describe_kernels(device: str) -> dict[str, Any]:
    """The kernels for a device type as JSON values, seconds where something was measured.

    On a CPU this measures what has not been yet, which takes a second or two, once a machine.
    Raises `ConfigError` as `check_environment` does.
    """
    check_environment()
    asked = dispatch.asked_backend()
    probe = torch.empty(0, 8, dtype=torch.bfloat16, device=device)
    reason = dispatch.why_not_triton(probe, probe)
    why_not_qlinear = None
    if device == "cpu":
        dispatch.eager_kernels(probe)
        dispatch.eager_int8_kernels(probe)
        if not cpu_arithmetic.has_int8_units():
            why_not_qlinear = cpu_arithmetic.why_not_qlinear()
    return {
        "backend": _backend(asked, reason),
        "asked": asked,
        "why_not_triton": reason,
        "why_not_qlinear": why_not_qlinear,
        "choices": [asdict(choice) for choice in autotune.made()],
        "choices_file": str(autotune.cache_file()),
    }


def check_environment(device: str | None = None) -> None:
    """Refuse what the kernels' two environment variables cannot be. Raises `ConfigError`.

    With a device type, Triton asked for by name is refused where it cannot compute on it.
    """
    try:
        asked = dispatch.asked_backend()
        autotune.cache_file()
    except ValueError as error:
        raise ConfigError(f"{error}.") from None
    if asked == "triton" and device is not None:
        probe = torch.empty(0, 8, dtype=torch.bfloat16, device=device)
        if reason := dispatch.why_not_triton(probe, probe):
            raise ConfigError(
                f"{dispatch.VARIABLE} asks for triton, but {reason}; set it to auto or torch."
            )


def _backend(asked: str, why_not_triton: str | None) -> str:
    if asked == "triton" and why_not_triton is not None:
        return "none: triton is asked for and cannot"
    return "torch" if asked == "torch" or why_not_triton is not None else "triton"


def drift(kept: Mapping[str, str]) -> tuple[str, ...]:
    """Sentences on the kept answers that this machine's own measurement would give otherwise."""
    found = []
    for question in cpu_arithmetic.QUESTIONS:
        answer = kept.get(question)
        if answer is None or (here := cpu_arithmetic.cpu_answer(question)) == answer:
            continue
        found.append(
            f"it was trained with {answer} arithmetic for {question} and is computed so again; "
            f"this machine would choose {here}"
        )
    return tuple(found)


@contextmanager
def replayed_choices(kept: Mapping[str, str]) -> Iterator[None]:
    """Compute as a run did, whatever would be faster here."""
    with autotune.replay(kept):
        yield


@contextmanager
def told_choices(listener: Callable[[str, str], None]) -> Iterator[None]:
    """Tell `listener` each question that computing asks from here on, and its answer."""
    with autotune.told(listener):
        yield
