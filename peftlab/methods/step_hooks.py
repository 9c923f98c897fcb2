"""What a method adds to the optimizer's steps: a term of the loss, and work after each step."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import Any

import torch


class StepHooks(ABC):  # noqa: B024  (each of its methods may be left as it is)
    """Base of such hooks; it does nothing. The task's loss, which is reported, has none of it."""

    def begin(self, steps: int) -> None:  # noqa: B027
        """Called before the first step with the steps of the whole run.

        Raises `ConfigError` where the method cannot do with so many.
        """

    def loss_term(self, batch: Mapping[str, Any]) -> torch.Tensor | None:
        """A term beside the mean loss of a micro-batch, after its forward pass; None for none.

        Its mean over an optimizer step, weighted by the micro-batches' items, is added to the loss.
        """
        return None

    def after_step(self, step: int) -> None:  # noqa: B027
        """Called after the optimizer's step (the first is 0), with the gradients still there."""

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint must hold to go on, beside the trained tensors."""
        return {}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:  # noqa: B027
        """Go on from what `state` returned."""
