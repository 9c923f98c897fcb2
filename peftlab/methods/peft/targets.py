"""Which modules a type of PEFT's adapters goes on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from peftlab.errors import CheckFailed, did_you_mean
from peftlab.methods.peft.types import AdapterType
from peftlab.methods.targets import linear_modules, matches, resolve_targets
from peftlab.model.structure import block_lists, head_modules, input_embeddings

_KEY_OR_VALUE = re.compile(
    r"k|v|key|value|(k|v|kv|qkv|key|value)_(proj|lin)|query_key_value|c_attn|Wqkv|kv|qkv|(self)?qkv"
)
_ATTENTION = re.compile(r"attn|attention|Attention")


def resolve(
    model: nn.Module, given: str | Sequence[str], saved: Sequence[str], row: AdapterType
) -> tuple[str, ...] | None:
    """Exact names of the modules to adapt; None where the type chooses, or has none.

    A text other than auto and all-linear is a regular expression for whole names; a list holds
    ends of names. Raises `CheckFailed` where that names nothing.
    """
    if row.places in ("none", "own") and given == "auto":
        return None
    if row.places in ("linear", "rescaled"):
        if isinstance(given, str) and given not in ("auto", "all-linear"):
            return resolve_targets(model, _by_regex(given, linear_modules(model), model), saved)
        if given == "auto" and row.places == "rescaled":
            return _rescaled(model)
        return resolve_targets(model, "auto" if given == "auto" else _list(given), saved)
    if row.places == "own":
        assert not isinstance(given, str) or given != "auto"
        return tuple(given) if not isinstance(given, str) else (given,)
    known = _norms(model) if row.places == "norms" else _tables(model)
    if given in ("auto", "all-linear"):
        names = known if given == "auto" else ()
    elif isinstance(given, str):
        names = _by_regex(given, known, model)
    else:
        names = tuple(n for n in known if any(matches(n, pattern) for pattern in given))
    if not names:
        what = "norms" if row.places == "norms" else "token embeddings"
        raise CheckFailed(
            f"method.target_modules is {given!r}, which names none of the {what} of "
            f"{type(model).__name__}; they are {', '.join(known[:4]) or 'none'}."
        )
    return names


def _list(given: str | Sequence[str]) -> Any:
    return given if isinstance(given, str) else list(given)


def _by_regex(pattern: str, known: Sequence[str], model: nn.Module) -> tuple[str, ...]:
    """Names that a regular expression matches whole, as PEFT reads a text."""
    try:
        names = tuple(name for name in known if re.fullmatch(pattern, name))
    except re.error as error:
        raise CheckFailed(
            f"method.target_modules is {pattern!r}, which is no regular expression: {error}."
        ) from None
    if not names:
        ends = {name.rpartition(".")[2] for name in known}
        way_out = f"; write [{pattern}] for the ends of names" if pattern in ends else ""
        hint = way_out or did_you_mean(pattern, sorted(ends)) or ""
        raise CheckFailed(
            f"method.target_modules is {pattern!r}, a regular expression that matches no whole "
            f"name of a layer of {type(model).__name__}{hint}."
        )
    return names


def _norms(model: nn.Module) -> tuple[str, ...]:
    """Every layer norm and RMS norm that is not the head's."""
    heads = tuple(f"{name}." for name in head_modules(model))
    return tuple(
        name
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        and isinstance(weight := getattr(module, "weight", None), nn.Parameter)
        and weight.dim() == 1
        and name not in head_modules(model)
        and not name.startswith(heads)
    )


def _tables(model: nn.Module) -> tuple[str, ...]:
    table = input_embeddings(model)
    return tuple(name for name, module in model.named_modules() if module is table)


def _rescaled(model: nn.Module) -> tuple[str, ...]:
    """Keys, values, and the outputs of feed-forward layers."""
    stacks = block_lists(model)
    inside = [n for n in linear_modules(model) if any(stack.holds(n) for stack in stacks)]
    keys = [n for n in inside if _KEY_OR_VALUE.fullmatch(n.rpartition(".")[2])]
    outputs = feedforward_outputs(model, inside)
    if not keys or not outputs:
        lacking = "output of a feed-forward layer" if keys else "key or value"
        raise CheckFailed(
            f"No linear layer of {type(model).__name__} is known as a {lacking}; name "
            "method.target_modules and method.feedforward_modules."
        )
    return tuple(name for name in inside if name in keys or name in outputs)


def feedforward_outputs(model: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """Those of some linear layers that lead from a wide inner layer back to the model's width."""
    outputs = []
    for name in names:
        layer: Any = model.get_submodule(name)
        if isinstance(layer, nn.Linear):
            narrows = layer.in_features > layer.out_features
        else:
            narrows = layer.weight.shape[0] > layer.weight.shape[1]
        # An attention's output is no such layer, however many heads there are.
        if narrows and not _ATTENTION.search(name):
            outputs.append(name)
    return tuple(outputs)


def feedforward(
    model: nn.Module, targets: Sequence[str], given: Sequence[str] | str | None
) -> list[str]:
    """IA3's layers that are rescaled at their input, by exact names among its targets."""
    if given is None:
        return list(feedforward_outputs(model, targets))
    patterns = [given] if isinstance(given, str) else given
    for pattern in patterns:
        if not any(matches(name, pattern) for name in targets):
            raise CheckFailed(
                f"method.feedforward_modules names {pattern!r}, which is none of the layers in "
                "method.target_modules."
            )
    return [name for name in targets if any(matches(name, pattern) for pattern in patterns)]


def ends_of(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """The targets by ends of names without block numbers, where those mean the same modules.

    Layers that share an end may share tensors (Lily), and the saved configuration is short.
    """
    stacks = block_lists(model)
    ends = {name: name for name in targets}
    for name in targets:
        for stack in stacks:
            if stack.holds(name):
                ends[name] = name.removeprefix(f"{stack.name}.").partition(".")[2] or name
    short = sorted(set(ends.values()))
    meant = {n for n, _ in model.named_modules() if any(_ends_so(n, end) for end in short)}
    return short if meant == set(targets) else sorted(targets)


def _ends_so(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")
