"""Which parameters train: a set of names, and the modules that train whole for the task."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from peftlab.model.structure import fresh_modules, head_modules


@dataclass(frozen=True, slots=True)
class Selection:
    """Parameters that train, the head's modules, and what the user should read."""

    names: frozenset[str]
    head: tuple[str, ...]
    notes: tuple[str, ...] = ()


def task_head(model: nn.Module) -> tuple[str, ...]:
    """Modules that must be trained for the task: the head, and what the checkpoint did not hold."""
    heads = head_modules(model)
    inside = tuple(f"{name}." for name in heads)
    fresh = (n for n in fresh_modules(model) if n not in heads and not n.startswith(inside))
    return (*heads, *fresh)
