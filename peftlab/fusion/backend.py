"""The kernels on this machine: the backend, why not the other one, and the autotuned choices.

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

    On a CPU this autotunes what has no choice yet: a second or two, once per machine.
    Raises `ConfigError` as `check_environment` does.
    """
    check_environment()
    requested = dispatch.asked_backend()
    probe = torch.empty(0, 8, dtype=torch.bfloat16, device=device)
    reason = dispatch.why_not_triton(probe, probe)
    why_not_qlinear = None
    if device == "cpu":
        dispatch.eager_kernels(probe)
        dispatch.eager_int8_kernels(probe)
        if not cpu_arithmetic.has_int8_units():
            why_not_qlinear = cpu_arithmetic.why_not_qlinear()
    return {
        "backend": _backend(requested, reason),
        "requested": requested,
        "why_not_triton": reason,
        "why_not_qlinear": why_not_qlinear,
        "choices": [asdict(choice) for choice in autotune.made()],
        "choices_file": str(autotune.cache_file()),
    }


def check_environment(device: str | None = None) -> None:
    """Refuse invalid values of the kernels' two environment variables. Raises `ConfigError`.

    With a device type, an explicit request for Triton is refused where it cannot run there.
    """
    try:
        requested = dispatch.asked_backend()
        autotune.cache_file()
    except ValueError as error:
        raise ConfigError(f"{error}.") from None
    if requested == "triton" and device is not None:
        probe = torch.empty(0, 8, dtype=torch.bfloat16, device=device)
        if reason := dispatch.why_not_triton(probe, probe):
            raise ConfigError(
                f"{dispatch.VARIABLE} is triton, but {reason}; set it to auto or torch."
            )


def _backend(requested: str, why_not_triton: str | None) -> str:
    if requested == "triton" and why_not_triton is not None:
        return "none: triton is requested and not available"
    return "torch" if requested == "torch" or why_not_triton is not None else "triton"


def drift(kept: Mapping[str, str]) -> tuple[str, ...]:
    """Sentences on the recorded choices that autotuning on this machine would make differently."""
    sentences = []
    for question in cpu_arithmetic.QUESTIONS:
        answer = kept.get(question)
        if answer is None or (here := cpu_arithmetic.cpu_answer(question)) == answer:
            continue
        sentences.append(
            f"it was trained with {answer} arithmetic for {question}, which is used again; "
            f"this machine would choose {here}"
        )
    return tuple(sentences)


@contextmanager
def replayed_choices(kept: Mapping[str, str]) -> Iterator[None]:
    """Compute by a run's recorded choices, whatever would be faster here."""
    with autotune.replay(kept):
        yield


@contextmanager
def on_choice(listener: Callable[[str, str], None]) -> Iterator[None]:
    """Call `listener` with each question that autotuning answers inside, and its answer."""
    with autotune.told(listener):
        yield
