"""What a method is: it chooses what trains of a model, and saves and loads what trained."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from peftlab.config.methods.options import MethodOptions
from peftlab.errors import CheckFailed
from peftlab.methods.coverage import Coverage, cover
from peftlab.methods.freeze import freeze
from peftlab.methods.selection import Selection
from peftlab.methods.trained_part import START, Start

logger = logging.getLogger("peftlab")

Options = TypeVar("Options", bound=MethodOptions)


@dataclass(frozen=True, slots=True)
class Applied:
    """A model ready to train.

    `trainable` names parameters as `model.named_parameters()` does; `head_modules` are the modules
    of the base model that train whole for the task; `notes` are sentences the user should read;
    `start` is what `Method.begin` computed, which every checkpoint carries.
    """

    model: nn.Module
    method: MethodOptions
    task: str
    trainable: frozenset[str]
    coverage: Coverage
    head_modules: tuple[str, ...]
    notes: tuple[str, ...] = ()
    start: Start | None = None


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a method may begin from.

    `batches` gives inputs of the model from training rows, in their order and on the CPU;
    `compute` is the dtype of activations; `checkpoint` is the one that training goes on from.
    """

    seed: int
    compute: torch.dtype
    batches: Callable[[], Iterable[Mapping[str, torch.Tensor]]]
    checkpoint: Path | None = None

    def stored(self, kind: str) -> Start | None:
        """The checkpoint's start, or None where training begins. Raises `CheckFailed`."""
        if self.checkpoint is None:
            return None
        start = Start.of(self.checkpoint)
        if start is None or start.kind != kind:
            raise CheckFailed(
                f"{self.checkpoint} carries no start by {kind} ({START}); start anew, without "
                "--resume."
            )
        return start


class StepHooks(ABC):  # noqa: B024  (each of its methods may be left as it is)
    """What a method adds to the optimizer's steps: a term of the loss, and work after each step.

    This base does nothing. The task's loss, which is reported, has none of it.
    """

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


class Method(ABC, Generic[Options]):
    """Base of the methods. One is made of its options, and holds nothing of a model."""

    def __init__(self, options: Options) -> None:
        self.options = options

    @abstractmethod
    def select(
        self, model: nn.Module, task: str, tokens: Sequence[int]
    ) -> tuple[nn.Module, Selection]:
        """The model to train, with an adapter on where the method has one, and what trains of it.

        `tokens` are ids whose embeddings train beside an adapter's own tensors; a method without an
        adapter trains them with the whole table or not at all. Works on meta models.
        """

    @abstractmethod
    def default_learning_rate(self, hidden_size: int) -> float:
        """What `train.learning_rate: auto` is for a model of this width, for AdamW with warm-up."""

    @abstractmethod
    def folder(self, run: Path) -> Path:
        """Where in a run's folder the trained part lies."""

    @abstractmethod
    def save(self, applied: Applied, run: Path) -> Path:
        """Write the trained part into its folder, which is returned."""

    @abstractmethod
    def load(
        self, model: nn.Module, run: Path, *, task: str, tokens: Sequence[int] = ()
    ) -> Applied:
        """Apply the method to its freshly loaded base and fill in what `save` wrote.

        Raises `CheckFailed` where the file is missing or damaged, is another method's, or does not
        fit.
        """

    def apply(self, model: nn.Module, *, task: str, tokens: Sequence[int] = ()) -> Applied:
        """Choose what trains, put adapters on where the method has them, freeze the rest.

        Trainable tensors become fp32, frozen ones keep their dtype. Raises `CheckFailed` or
        `ConfigError` where the method cannot be applied to this model.
        """
        model, selected = self.select(model, task, tokens)
        freeze(model, selected.names)
        for note in selected.notes:
            logger.info("%s", note)
        return Applied(
            model=model,
            method=self.options,
            task=task,
            trainable=selected.names,
            coverage=cover(model),
            head_modules=selected.head,
            notes=selected.notes,
        )

    def begin(self, applied: Applied, beginning: Beginning) -> Applied:
        """Compute what the method starts from, of the base's weights or of training rows.

        Called once the rows are encoded, never on a meta model. A resumed run begins from its
        checkpoint's start. Raises `CheckFailed`.
        """
        return applied

    def learning_rates(self, applied: Applied, rate: float) -> Mapping[str, float]:
        """Learning rates of trainable parameters, by name, that differ from `rate`."""
        return {}

    def step_hooks(self, applied: Applied) -> StepHooks | None:
        """What it adds to the optimizer's steps, or None."""
        return None
