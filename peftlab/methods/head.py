"""Method `head`: the task's head alone, over a frozen base whose features can be kept."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from peftlab.config.methods.head import HeadOptions
from peftlab.errors import CheckFailed
from peftlab.methods.selection import Selection, task_head
from peftlab.methods.whole import WholeMethod
from peftlab.model.heads import PooledClassifier
from peftlab.model.mode import pin_eval
from peftlab.model.structure import base_modules, is_tied, parameters_under


class Head(WholeMethod[HeadOptions]):
    """Trains the head; the base stays in evaluation mode, so that its features do not change."""

    def select(
        self, model: nn.Module, task: str, tokens: Sequence[int]
    ) -> tuple[nn.Module, Selection]:
        """See `Method.select`. Raises `CheckFailed` where the head shares the base's weights."""
        heads = task_head(model)
        for name in heads:
            if is_tied(model, name):
                raise CheckFailed(
                    f"method.name is head, but {name} of {type(model).__name__} is tied to the "
                    "input embeddings and has no weights of its own to train; use last_n, lora or "
                    "full."
                )
        if not isinstance(model, PooledClassifier):
            for name in base_modules(model):
                pin_eval(model.get_submodule(name))
        return model, Selection(parameters_under(model, heads), heads)

    def default_learning_rate(self, hidden_size: int) -> float:
        """See `Method.default_learning_rate`. On frozen features the problem is convex."""
        return 5e-3
