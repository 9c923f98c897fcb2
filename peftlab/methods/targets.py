"""Which layers get an adapter and which modules train whole: every name must mean something."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn
from transformers.pytorch_utils import Conv1D

from peftlab.errors import CheckFailed, did_you_mean
from peftlab.methods.selection import task_head
from peftlab.methods.task_kind import has_new_head, peft_heads
from peftlab.model.structure import block_lists, head_modules, is_tied

Targets = str | Sequence[str]


def linear_modules(model: nn.Module) -> tuple[str, ...]:
    """Names of every linear layer, 8-bit ones and GPT-2's `Conv1D` included."""
    return tuple(
        name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)
    )


def resolve_targets(model: nn.Module, given: Targets, saved: Sequence[str]) -> tuple[str, ...]:
    """Exact names of the layers to adapt.

    auto: every linear inside the blocks; all-linear: those outside too, but neither the head nor
    the output embeddings; another string: a regular expression for whole names; else patterns: a
    name, its end from a dot on, or a glob. Modules in `saved` train whole and get no adapter.
    Raises `CheckFailed` naming what matches nothing, with the nearest names, or only what cannot
    be adapted.
    """
    linear = linear_modules(model)
    apart = tuple(f"{name}." for name in saved)
    free = [name for name in linear if name not in saved and not name.startswith(apart)]
    if isinstance(given, str) and given in ("auto", "all-linear"):
        heads = tuple(f"{name}." for name in head_modules(model))
        stacks = block_lists(model)
        if given == "auto":
            wanted = [name for name in free if any(stack.holds(name) for stack in stacks)]
        else:
            wanted = [n for n in free if n not in head_modules(model) and not n.startswith(heads)]
        if not wanted:
            raise CheckFailed(f"{type(model).__name__} has no linear layer to adapt.")
        return tuple(wanted)
    if isinstance(given, str):
        chosen = {name for name in free if re.fullmatch(given, name)}
        if not chosen:
            raise CheckFailed(
                f"method.target_modules is the regular expression {given!r}, which matches no "
                f"linear layer of {type(model).__name__} by its whole name; ends of names are "
                f"written as a list: [{given}]{meant(given, linear)}"
            )
    else:
        chosen = set()
        for pattern in given:
            matched = [name for name in free if matches(name, pattern)]
            if not matched:
                raise CheckFailed(_why_nothing(model, pattern, linear, saved))
            chosen.update(matched)
    for name in sorted(chosen):
        if is_tied(model, name):
            raise CheckFailed(
                f"method.target_modules names {name}, which is tied to the input embeddings: an "
                "adapter on it could not be merged; leave it out."
            )
    return tuple(name for name in free if name in chosen)


def matches(name: str, pattern: str) -> bool:
    """Whether a module's dotted name is meant by a pattern (`query`, `attention.q`, `*.h.0.*`)."""
    if any(sign in pattern for sign in "*?["):
        return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")
    return name == pattern or name.endswith(f".{pattern}")


def _why_nothing(
    model: nn.Module, pattern: str, linear: Sequence[str], saved: Sequence[str]
) -> str:
    start = f"method.target_modules names {pattern!r}"
    if any(matches(name, pattern) for name in linear):
        return f"{start}, which trains in full already ({', '.join(saved)}); leave it out."
    others = sorted(
        {type(module).__name__ for name, module in model.named_modules() if matches(name, pattern)}
    )
    if others:
        return (
            f"{start}, which is {', '.join(others)}: LoRA adapts linear layers; put it into "
            "method.modules_to_save to train it whole."
        )
    return f"{start}, which matches no layer of {type(model).__name__}{meant(pattern, linear)}"


def meant(given: str, names: Iterable[str]) -> str:
    """Which whole names or last parts were meant; where none is near, some that there are."""
    last_parts = sorted({name.rpartition(".")[2] for name in names})
    hint = did_you_mean(given, [*last_parts, *names], most=3, cutoff=0.5)
    more = ", ..." if len(last_parts) > 6 else ""
    return hint or f"; names are {', '.join(last_parts[:6])}{more}."


def resolve_saved(
    model: nn.Module,
    given: Literal["auto"] | Sequence[str],
    task: str,
    *,
    keep_tied: bool = False,
) -> tuple[str, ...]:
    """Exact names of the modules that train whole beside the adapter, the task's head always.

    `keep_tied`: those that share their weights may be among them.

    auto: the head, where it is new; a language model's head is trained already. A name must be
    exactly one module's, or its end from a dot on. Raises `CheckFailed` otherwise, and where PEFT,
    which compares by the ends of names, would train more than was named.
    """
    heads = task_head(model) if has_new_head(task) else ()
    if isinstance(given, str):
        return _checked(model, heads, task)
    known = [name for name, module in model.named_modules() if name and _has_parameters(module)]
    wanted: list[str] = list(heads)
    for name in given:
        exact = [name] if name in known else [k for k in known if k.endswith(f".{name}")]
        if not exact:
            raise CheckFailed(
                f"method.modules_to_save names {name!r}, which is no module of "
                f"{type(model).__name__}{meant(name, known)}"
            )
        if len(exact) > 1:
            raise CheckFailed(
                f"method.modules_to_save names {name!r}, which could be {len(exact)} modules "
                f"({', '.join(exact[:3])}, ...); write one's whole name."
            )
        if is_tied(model, exact[0]) and not keep_tied:
            raise CheckFailed(
                f"method.modules_to_save names {exact[0]}, which shares its weights with another "
                "module: PEFT would train a copy and untie them; leave it out, or set "
                "method.ensure_weight_tying: true."
            )
        if exact[0] not in wanted:
            wanted.append(exact[0])
    return _checked(model, tuple(wanted), task)


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _checked(model: nn.Module, saved: tuple[str, ...], task: str) -> tuple[str, ...]:
    """No module but these may end like one of them. Raises `CheckFailed`."""
    ends = {*saved, *peft_heads(task)}
    for name, _ in model.named_modules():
        caught = [end for end in ends if name.endswith(end)]
        if caught and name not in saved:
            raise CheckFailed(
                f"PEFT saves modules by the ends of their names: {caught[0]!r} would train {name} "
                "too, which is not wanted; name it in method.modules_to_save as well, or take "
                "another method."
            )
    return saved
