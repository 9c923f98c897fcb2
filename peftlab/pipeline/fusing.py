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
    activations have one dtype.
    """
    if kernels == "off":
        assert not loaded.fp32_activations, "16-bit weights cannot meet fp32 activations unfused"
        return None
    from peftlab.fusion import fuse

    report = fuse(model, activations="fp32" if loaded.fp32_activations else "keep")
    if not (report.fused or report.not_fused or report.widened):
        return None
    logger.info("%s", report if report.not_fused else str(report).partition("\n")[0])
    return report


@contextmanager
def keeping_choices(folder: Path) -> Iterator[None]:
    """Compute by the choices that the folder holds, and leave there what was chosen besides."""
    from peftlab.fusion.backend import made_choices

    with by_choices_of(folder):
        try:
            yield
        finally:
            run_folder.write_json(folder / CHOICES, made_choices())


@contextmanager
def by_choices_of(folder: Path) -> Iterator[None]:
    """Compute by the choices that a run's folder holds; what this machine's would be is logged."""
    file = folder / CHOICES
    kept: dict[str, str] = run_folder.read_json(file) if file.is_file() else {}
    from peftlab.fusion.backend import drift, replayed_choices

    for sentence in drift(kept):
        logger.warning("%s: %s", folder, sentence)
    with replayed_choices(kept):
        yield
