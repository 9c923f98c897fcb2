"""Which parameters a method without adapters trains: sets of names, and nothing is changed here."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from peftlab.errors import CheckFailed, ConfigError
from peftlab.methods.task_kind import has_new_head
from peftlab.model.structure import (
    BlockList,
    after_blocks,
    block_lists,
    fresh_modules,
    head_modules,
    is_tied,
    parameters_under,
)


@dataclass(frozen=True, slots=True)
class Selection:
    """Parameters that train, the head's modules, and what the user should hear."""

    names: frozenset[str]
    head: tuple[str, ...]
    notes: tuple[str, ...] = ()


def task_head(model: nn.Module) -> tuple[str, ...]:
    """Modules that must be trained for the task: the head, and what the checkpoint did not hold."""
    heads = head_modules(model)
    inside = tuple(f"{name}." for name in heads)
    fresh = (n for n in fresh_modules(model) if n not in heads and not n.startswith(inside))
    return (*heads, *fresh)


def select_head(model: nn.Module) -> Selection:
    """The task's head alone. Raises `CheckFailed` where it shares its weights with the base."""
    heads = task_head(model)
    for name in heads:
        if is_tied(model, name):
            raise CheckFailed(
                f"method.name is head, but {name} of {type(model).__name__} is tied to the input "
                "embeddings and has no weights of its own to train; use last_n, lora or full."
            )
    return Selection(parameters_under(model, heads), heads)


def select_last_n(model: nn.Module, n: int, task: str) -> Selection:
    """The last `n` blocks, what runs after them, and the head.

    Of an encoder-decoder the decoder's blocks; for a task with a head of its own, where no target
    text pulls on the decoder alone, the encoder's too. A tied head stays frozen: it would train the
    embeddings, which lie before all blocks. Raises `ConfigError` where there are fewer than `n`.
    """
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
    return Selection(parameters_under(model, [*blocks, *following, *own]), tuple(own), notes)


def _following(model: nn.Module, left_out: list[BlockList]) -> list[str]:
    """Modules after the chosen stacks' blocks, without those that close a stack left out."""
    closing = tuple(f"{stack.name.rpartition('.')[0]}." for stack in left_out)
    return [name for name in after_blocks(model) if not (closing and name.startswith(closing))]


def select_all(model: nn.Module) -> Selection:
    """Everything."""
    return Selection(frozenset(name for name, _ in model.named_parameters()), task_head(model))
