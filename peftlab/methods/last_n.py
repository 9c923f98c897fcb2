"""Method `last_n`: the last blocks, what runs after them, and the head."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from peftlab.config.methods.last_n import LastNOptions
from peftlab.errors import ConfigError
from peftlab.methods.selection import Selection, task_head
from peftlab.methods.task_kind import has_new_head
from peftlab.methods.whole import WholeMethod
from peftlab.model.structure import (
    BlockList,
    after_blocks,
    block_lists,
    is_tied,
    parameters_under,
)


class LastN(WholeMethod[LastNOptions]):
    """Trains the last `n` blocks.

    Of an encoder-decoder the decoder's blocks; for a task with a head of its own, where no target
    text pulls on the decoder alone, the encoder's too. A tied head stays frozen: it would train the
    embeddings, which lie before all blocks.
    """

    def select(
        self, model: nn.Module, task: str, tokens: Sequence[int]
    ) -> tuple[nn.Module, Selection]:
        """See `Method.select`. Raises `ConfigError` where there are fewer than `n` blocks."""
        n = self.options.n
        stacks = block_lists(model)
        chosen = stacks if has_new_head(task) else stacks[-1:]
        shortest = min(stack.count for stack in chosen)
        if n > shortest:
            raise ConfigError(
                f"method.n is {n}, but {type(model).__name__} has {shortest} blocks in "
                f"{min(chosen, key=lambda s: s.count).name}; set method.n to {shortest} or less."
            )
        blocks = [s.block(i) for s in chosen for i in range(s.count - n, s.count)]
        following = _following(model, [s for s in stacks if s not in chosen])
        heads = task_head(model)
        tied = [name for name in heads if is_tied(model, name)]
        own = [name for name in heads if name not in tied]
        notes = tuple(
            f"{name} is tied to the input embeddings and stays frozen under last_n" for name in tied
        )
        names = parameters_under(model, [*blocks, *following, *own])
        return model, Selection(names, tuple(own), notes)

    def default_learning_rate(self, hidden_size: int) -> float:
        """See `Method.default_learning_rate`.

        5e-4 at a width of 384, scaled by the inverse of the width, as muP (Yang et al., 2022) has
        it for hidden matrices, and capped for narrow models.
        """
        return min(2e-3, 0.192 / hidden_size)


def _following(model: nn.Module, left_out: list[BlockList]) -> list[str]:
    """Modules after the chosen stacks' blocks, without those that close a stack left out."""
    closing = tuple(f"{stack.name.rpartition('.')[0]}." for stack in left_out)
    return [name for name in after_blocks(model) if not (closing and name.startswith(closing))]
