"""Which of a run's layers compute otherwise than Transformers and PEFT wrote them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import nn

    from peftlab.fusion import FusionReport
    from peftlab.model.loading import LoadedModel

logger = logging.getLogger("peftlab")


def fuse_for(
    model: nn.Module, loaded: LoadedModel, kernels: Literal["auto", "off"] = "auto"
) -> FusionReport | None:
    """Make a loaded model compute as its precision says, once the method has been applied to it.

    `model` is `loaded.model` with the method on it. With kernels "off" nothing is fused: load the
    model with `fp32_at_rest` then, so that weights and activations have one dtype.
    """
    if kernels == "off":
        assert not loaded.fp32_activations, "16-bit weights cannot meet fp32 activations unfused"
        return None
    if not loaded.fp32_activations:
        return None
    from peftlab.fusion import fuse

    report = fuse(model, activations="fp32")
    logger.info("%s", report)
    return report
