"""Method `full`: every parameter, the yardstick of the others."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from peftlab.config.methods.full import FullOptions
from peftlab.methods.selection import Selection, task_head
from peftlab.methods.whole import WholeMethod


class Full(WholeMethod[FullOptions]):
    """Trains everything."""

    def select(
        self, model: nn.Module, task: str, tokens: Sequence[int]
    ) -> tuple[nn.Module, Selection]:
        """See `Method.select`."""
        names = frozenset(name for name, _ in model.named_parameters())
        return model, Selection(names, task_head(model))

    def default_learning_rate(self, hidden_size: int) -> float:
        """See `Method.default_learning_rate`: 1e-4 at a width of 384, by its inverse, capped."""
        return min(1e-3, 0.0384 / hidden_size)
