"""Which of a run's layers the kernels compute, and by which measured choices.

A run records the choices that were made by measurement, and computes by them when it is opened
again: the model is then the same function that was trained, on another machine too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.errors import CheckFailed, ConfigError
from peftlab.files import read_json, write_json

if TYPE_CHECKING:
    from torch import nn

    from peftlab.config import RunConfig
    from peftlab.fusion import FusionReport
    from peftlab.fusion.int8.gate import Int8Gate
    from peftlab.model.loading import LoadedModel

logger = logging.getLogger("peftlab")

CHOICES = "kernel_choices.json"
"""In a run's folder: the choices made by measurement, by question."""

VERDICTS = "int8_arithmetic.json"
"""In a run's folder: each 8-bit layer's arithmetic, and the errors that were measured."""


def fuse_for(
    model: nn.Module, loaded: LoadedModel, config: RunConfig, *, level: int = logging.DEBUG
) -> FusionReport | None:
    """Make a loaded model compute in its precision, once the method has been applied to it.

    `model` is `loaded.model` with the method applied. None where nothing is fused, as with kernels
    "off": load the model with `fp32_at_rest` then, so that weights and activations have one dtype.
    The report is logged at `level`. Raises `ConfigError` as `backend.check_environment` does, and
    for an arithmetic that only the kernels support.
    """
    settings = config.method.eight_bit
    if config.train.kernels == "off":
        assert not loaded.fp32_activations, "16-bit weights cannot meet fp32 activations unfused"
        if settings.get("arithmetic") == "w8a8":
            raise ConfigError(
                "method.arithmetic is w8a8, which needs the kernels, but train.kernels is off; "
                "set train.kernels=auto, or method.arithmetic=w8a16."
            )
        return None
    from peftlab.fusion import fuse
    from peftlab.fusion.backend import check_environment
    from peftlab.model.precision import training_device

    check_environment(training_device())
    report = fuse(model, activations="fp32" if loaded.fp32_activations else "keep", **settings)
    if not (report.fused or report.not_fused or report.widened or report.gates):
        return None
    logger.log(level, "%s", report if report.not_fused else str(report).partition("\n")[0])
    return report


@contextmanager
def recorded_choices(folder: Path, fusion: FusionReport | None) -> Iterator[None]:
    """Compute by the choices in the folder, and record new ones there.

    At once, so that a killed run resumes with the choices that it began with. 8-bit layers'
    verdicts are such choices. Raises `CheckFailed` as `by_choices_of` does.
    """
    from peftlab.fusion.backend import on_choice
    from peftlab.fusion.int8.gate import on_verdict

    file = folder / CHOICES
    kept = _read_choices(file)
    write_json(file, kept)
    verdicts = replay_verdicts(folder, fusion)

    def keep(question: str, answer: str) -> None:
        if kept.get(question) != answer:
            kept[question] = answer
            write_json(file, kept)

    def keep_verdict(gate: Int8Gate) -> None:
        verdicts[gate.layer] = gate.to_json()
        write_json(folder / VERDICTS, verdicts)

    with by_choices_of(folder), on_choice(keep), on_verdict(keep_verdict):
        yield


def replay_verdicts(folder: Path, fusion: FusionReport | None) -> dict[str, Any]:
    """Apply the verdicts in a run's folder to the 8-bit layers; returns the verdicts.

    Layers without one, as in a run that was killed early, measure again. Raises `CheckFailed` where
    the file is damaged.
    """
    file = folder / VERDICTS
    gates = {} if fusion is None else fusion.gates
    verdicts: dict[str, Any] = read_json(file) if file.is_file() and gates else {}
    for layer, verdict in verdicts.items():
        arithmetic = verdict.get("arithmetic") if isinstance(verdict, dict) else None
        if arithmetic not in {"w8a8", "w8a16"} or layer not in gates:
            raise CheckFailed(
                f"{file} has {verdict!r} for {layer}; it must name an 8-bit layer of this model, "
                "and w8a8 or w8a16. Train the run again, or restore the file."
            )
        if gates[layer].requested == "auto":
            gates[layer].verdict = arithmetic
    return verdicts


def decide_verdicts(fusion: FusionReport | None) -> None:
    """After training: layers that saw too few calls keep the arithmetic that they used."""
    for gate in () if fusion is None else fusion.gates.values():
        gate.decide_now()


@contextmanager
def by_choices_of(folder: Path) -> Iterator[None]:
    """Compute by the choices in a run's folder; logs those that this machine would not make.

    A folder without them, of an earlier version, uses this machine's choices. Raises `CheckFailed`
    where they are damaged.
    """
    kept = _read_choices(folder / CHOICES)
    from peftlab.fusion.backend import drift, replayed_choices

    for sentence in drift(kept):
        logger.warning("%s: %s", folder, sentence)
    with replayed_choices(kept):
        yield


def _read_choices(file: Path) -> dict[str, str]:
    """Answers by question; none where there is no file."""
    way_out = "remove it to compute by what is fastest on this machine"
    try:
        kept = read_json(file) if file.is_file() else {}
    except CheckFailed as damaged:
        raise CheckFailed(f"{str(damaged).removesuffix('.')}; {way_out}.") from None
    for question, answer in kept.items():
        if not isinstance(answer, str):
            raise CheckFailed(
                f"{file} answers {question!r} with {answer!r}, which is not a name; {way_out}."
            )
    return kept
