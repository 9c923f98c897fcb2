"""Which of a run's layers compute otherwise than Transformers and PEFT wrote them, and how.

A run keeps the choices that were made by measurement, and whatever reopens it computes by them: the
function that answers is the one that was trained, on another machine too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from peftlab import run_folder
from peftlab.errors import CheckFailed

if TYPE_CHECKING:
    from torch import nn

    from peftlab.fusion import FusionReport
    from peftlab.model.loading import LoadedModel

logger = logging.getLogger("peftlab")

CHOICES = "kernel_choices.json"
"""In a run's folder: what was chosen by measurement, by question."""


def fuse_for(
    model: nn.Module, loaded: LoadedModel, kernels: Literal["auto", "off"]
) -> FusionReport | None:
    """Make a loaded model compute as its precision says, once the method has been applied to it.

    `model` is `loaded.model` with the method on it. None where there is nothing to fuse. With
    kernels "off" nothing is: load the model with `fp32_at_rest` then, so that weights and
    activations have one dtype. Raises `ConfigError` as `backend.check_environment` does.
    """
    if kernels == "off":
        assert not loaded.fp32_activations, "16-bit weights cannot meet fp32 activations unfused"
        return None
    from peftlab.fusion import fuse
    from peftlab.fusion.backend import check_environment
    from peftlab.model.precision import training_device

    check_environment(training_device())
    report = fuse(model, activations="fp32" if loaded.fp32_activations else "keep")
    if not (report.fused or report.not_fused or report.widened):
        return None
    logger.info("%s", report if report.not_fused else str(report).partition("\n")[0])
    return report


@contextmanager
def keeping_choices(folder: Path) -> Iterator[None]:
    """Compute by the choices that the folder holds, and add there what is chosen besides.

    At once, so that a run that is killed goes on by the choices that it began with. Raises
    `CheckFailed` as `by_choices_of` does.
    """
    from peftlab.fusion.backend import told_choices

    file = folder / CHOICES
    kept = _read_choices(file)
    run_folder.write_json(file, kept)

    def keep(question: str, answer: str) -> None:
        if kept.get(question) != answer:
            kept[question] = answer
            run_folder.write_json(file, kept)

    with by_choices_of(folder), told_choices(keep):
        yield


@contextmanager
def by_choices_of(folder: Path) -> Iterator[None]:
    """Compute by the choices that a run's folder holds; what this machine's would be is logged.

    A folder without them, from before runs kept them, is computed by this machine's. Raises
    `CheckFailed` where they are damaged.
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
        kept = run_folder.read_json(file) if file.is_file() else {}
    except CheckFailed as damaged:
        raise CheckFailed(f"{str(damaged).removesuffix('.')}; {way_out}.") from None
    for question, answer in kept.items():
        if not isinstance(answer, str):
            raise CheckFailed(f"{file} answers {question!r} with {answer!r}, no name; {way_out}.")
    return kept
