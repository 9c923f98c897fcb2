"""Whether a checkpoint's tensors fit the model: a new head is fine, half an encoder is not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from peftlab.errors import CheckFailed
from peftlab.model.structure import after_blocks, block_lists, head_modules

_SHOWN = 4


def may_be_fresh(model: nn.Module) -> tuple[str, ...]:
    """Modules that may be missing: the head, and a pooler (linears after the blocks)."""
    poolers = (
        name
        for name in after_blocks(model)
        if any(isinstance(module, nn.Linear) for module in model.get_submodule(name).modules())
    )
    return (*head_modules(model), *poolers)


def check_keys(
    model: nn.Module, info: Mapping[str, Any], name: str, *, pretrained_head: bool
) -> tuple[frozenset[str], tuple[str, ...]]:
    """Check the missing, unexpected and mismatched keys of loading.

    Returns the parameters that are new, and notes for the user. Raises `CheckFailed` naming the
    keys where anything but a head is missing, or blocks are left over.
    """
    mismatched = {str(key): (was, now) for key, was, now in info["mismatched_keys"]}
    missing = {str(key) for key in info["missing_keys"]} | mismatched.keys()
    allowed = tuple(f"{module}." for module in may_be_fresh(model))
    lost = sorted(key for key in missing if not key.startswith(allowed))
    if lost:
        shapes = "".join(
            f"; {key} is {tuple(was)} there and {tuple(now)} here"
            for key, (was, now) in mismatched.items()
            if key in lost[:1]
        )
        raise CheckFailed(
            f"{name} lacks {len(lost)} tensors of {type(model).__name__}: {_some(lost)}{shapes}; "
            "its config.json and its weights do not belong together."
        )
    fresh = sorted(missing)
    if pretrained_head and fresh:
        raise CheckFailed(
            f"{name} has no language-model head ({_some(fresh)} missing); choose a checkpoint that "
            "was saved with its head."
        )
    extra = _extra_blocks(model, info["unexpected_keys"])
    if extra:
        raise CheckFailed(
            f"{name} holds {len(extra)} tensors of blocks that its config.json does not count: "
            f"{_some(extra)}; correct the number of layers."
        )
    return frozenset(fresh), tuple(_notes(model, fresh, mismatched, pretrained_head))


def _notes(
    model: nn.Module, fresh: Sequence[str], mismatched: Mapping[str, Any], pretrained_head: bool
) -> Iterable[str]:
    if pretrained_head:
        return
    if mismatched:
        key, (was, now) = next(iter(mismatched.items()))
        yield (
            f"the checkpoint's head is for another number of labels ({key} is {tuple(was)}, here "
            f"{tuple(now)}): a new one is trained"
        )
    new = sorted(
        {key.rpartition(".")[0] for key in fresh} - {k.rpartition(".")[0] for k in mismatched}
    )
    if new:
        yield f"not in the checkpoint, so newly initialised and trained: {', '.join(new)}"
    heads = head_modules(model)
    if heads and not fresh:
        yield f"training starts from the checkpoint's own {', '.join(heads)}"


def _extra_blocks(model: nn.Module, unexpected: Iterable[str]) -> list[str]:
    """Checkpoint keys of blocks beyond the model's last one."""
    extra = set()
    keys = [str(key) for key in unexpected]
    for stack in block_lists(model):
        # The base's own prefix may be missing in a checkpoint of the bare base.
        _, _, inner = stack.name.partition(".")
        for written in {stack.name, inner or stack.name}:
            pattern = re.compile(rf"(?:^|\.){re.escape(written)}\.(\d+)\.")
            for key in keys:
                match = pattern.search(key)
                if match and int(match[1]) >= stack.count:
                    extra.add(key)
    return sorted(extra)


def expected_fresh(model: nn.Module, shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> set[str]:
    """Parameters of head and pooler that a checkpoint with these tensors would not fill."""
    allowed = tuple(f"{module}." for module in may_be_fresh(model))
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    fresh = set()
    for name, parameter in model.named_parameters():
        if not name.startswith(allowed):
            continue
        written = {name, name.removeprefix(prefix), prefix + name}
        if not any(key in shapes and shapes[key][1] == tuple(parameter.shape) for key in written):
            fresh.add(name)
    return fresh


def _some(keys: Sequence[str]) -> str:
    shown = ", ".join(keys[:_SHOWN])
    return f"{shown}, ..." if len(keys) > _SHOWN else shown
