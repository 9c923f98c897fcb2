"""The kernels on this machine: the backend, why not the others, and what was measured.

The rest of peftlab knows the kernels through this package alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from peftlab.errors import ConfigError
from peftlab_kernels import autotune, backends, dispatch
from peftlab_kernels.eager import cpu_arithmetic


def describe_kernels(device: str) -> dict[str, Any]:
    """The kernels for a device type as JSON values, seconds where something was measured.

    On a CPU this autotunes what has no choice yet: a second or two, once per machine.
    Raises `ConfigError` as `check_environment` does.
    """
    check_environment()
    requested = dispatch.requested_backend()
    reasons = _why_not(device)
    why_not_qlinear = None
    if device == "cpu":
        backends.eager_kernels(_probe(device))
        backends.eager_int8_kernels(_probe(device))
        if not cpu_arithmetic.has_int8_units():
            why_not_qlinear = cpu_arithmetic.why_not_qlinear()
    return {
        "backend": _backend(requested, reasons),
        "requested": requested,
        "why_not": reasons,
        "why_not_qlinear": why_not_qlinear,
        "choices": [asdict(choice) for choice in autotune.made()],
        "choices_file": str(autotune.cache_file()),
    }


def check_environment(device: str | None = None) -> None:
    """Refuse invalid values of the kernels' two environment variables. Raises `ConfigError`.

    With a device type, a backend requested by name is refused where it cannot compute on it.
    """
    try:
        requested = dispatch.requested_backend()
        autotune.cache_file()
    except ValueError as error:
        raise ConfigError(f"{error}.") from None
    if device is None or requested == dispatch.AUTO:
        return
    if reason := _why_not(device)[requested]:
        raise ConfigError(
            f"{dispatch.VARIABLE} is {requested}, but {reason}; set it to auto or torch."
        )


def _why_not(device: str) -> dict[str, str | None]:
    probe = _probe(device)
    return dispatch.why_not(probe, probe)


def _probe(device: str) -> torch.Tensor:
    return torch.empty(0, 8, dtype=torch.bfloat16, device=device)


def _backend(requested: str, reasons: Mapping[str, str | None]) -> str:
    """The backend that computes, or why none does."""
    for name, reason in reasons.items():
        if requested in (dispatch.AUTO, name) and reason is None:
            return name
    return f"none: {requested} is requested and cannot compute"


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
    with autotune.on_choice(listener):
        yield
