"""The labels that a checkpoint's own head was trained on, and the data's labels beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from peftlab.errors import CheckFailed
from peftlab.model.structure import (
    fresh_modules,
    fresh_parameters,
    head_modules,
    mark_fresh,
)

_DEFAULT = re.compile(r"LABEL_\d+", re.IGNORECASE)
_SHOWN = 12
_HALVES = (" e1", " e2")
"""How a head that is read at two entities ends its names."""


def own_labels(config: Any) -> tuple[str, ...] | None:
    """The label names in a checkpoint's configuration, in the order of its head's rows.

    None where they say nothing: LABEL_0 or 0, 1, ..., or a single output.
    """
    names: Mapping[Any, Any] = getattr(config, "id2label", None) or {}
    try:
        ordered = tuple(str(names[index]) for index in range(len(names)))
    except KeyError:
        return None
    if len(ordered) < 2 or all(_DEFAULT.fullmatch(name) for name in ordered):
        return None
    return None if ordered == tuple(map(str, range(len(ordered)))) else ordered


def in_own_order(own: Sequence[str], names: Sequence[str]) -> tuple[str, ...] | None:
    """The data's `names` in the order of a checkpoint's; None where they are not the same labels.

    Upper and lower case are the same, as are the spellings of a span's prefix: B_PER and B-PER.
    """
    of_key = {_key(name): name for name in names}
    half = len(own) // 2
    if all(n.endswith(_HALVES[0]) for n in own[:half]) and half * 2 == len(own):
        first = [name.removesuffix(_HALVES[0]) for name in own[:half]]
        second = [name.removesuffix(_HALVES[1]) for name in own[half:]]
        own = first if first == second else own
    keys = [_key(name) for name in own]
    if len(of_key) < len(names) or len(set(keys)) < len(keys) or set(keys) != of_key.keys():
        return None
    return tuple(of_key[key] for key in keys)


def _key(name: str) -> str:
    folded = " ".join(name.casefold().split())
    prefixed = re.fullmatch(r"([bieslu])[-_:](.+)", folded)
    if prefixed is not None:
        return f"{prefixed[1]}-{prefixed[2]}"
    behind = re.fullmatch(r"(.+)[-_:]([bieslu])", folded)
    return folded if behind is None else f"{behind[2]}-{behind[1]}"


def keeps_own_head(model: nn.Module) -> bool:
    """Whether a model that was just loaded has the checkpoint's own head, and trains on from it."""
    heads = head_modules(model)
    fresh = fresh_modules(model)
    new = any(name == head or name.startswith(f"{head}.") for head in heads for name in fresh)
    return bool(heads) and not new


def renew_head(model: nn.Module) -> tuple[str, ...]:
    """Draw a new head from torch's generator, and mark it as new; returns a note."""
    heads = head_modules(model)
    deviation = getattr(getattr(model, "config", None), "initializer_range", None) or 0.02
    fresh = []
    for head in heads:
        for name, parameter in model.get_submodule(head).named_parameters():
            fresh.append(f"{head}.{name}")
            if parameter.is_meta:
                continue
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=float(deviation))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
    mark_fresh(model, {*fresh_parameters(model), *fresh})
    return (f"model.head is new: {', '.join(heads)} drawn anew and trained",)


def check_own_labels(name: str, own: Sequence[str] | None, labels: Mapping[int, str]) -> str | None:
    """Whether a checkpoint's own head is for the task's `labels`, by their index.

    Returns a note where the checkpoint names none. Raises `CheckFailed` with both sets of names
    where they differ, and for integer labels, which may be any of the checkpoint's.
    """
    ours = tuple(labels[index] for index in sorted(labels))
    if own is None:
        if all(label.isdecimal() or _DEFAULT.fullmatch(label) for label in ours):
            return None
        return f"its own head names no labels; its outputs are taken for {_listed(ours)}"
    if [_key(label) for label in ours] == [_key(label) for label in own]:
        return None
    if all(label.isdecimal() for label in ours):
        raise CheckFailed(
            f"{name} has a head for {_listed(own)}, and the labels of the data are the numbers "
            f"{_listed(ours)}: which is which? Name 0, 1, ... in their order with "
            "data.label_names=[...]; or set model.head=new to train a new head."
        )
    raise CheckFailed(
        f"{name} has a head for the labels {_listed(own)}, and the data has {_listed(ours)}: its "
        "rows would be trained on as other labels. Write the data's labels as the checkpoint does, "
        "or set model.head=new to train a new head."
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"{name!r:.40}" for name in names[:_SHOWN])
    return shown + (f", ... ({len(names)} in all)" if len(names) > _SHOWN else "")
