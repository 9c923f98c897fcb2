"""Every tensor of a merged model before one is made: its name, dtype and shape, and where from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from peftlab.errors import CheckFailed
from peftlab.export.changes import Changes
from peftlab.export.safetensors_files import DTYPES, NAMES, Spec, Stored
from peftlab.export.skeleton import Skeleton

Kind = Literal["copied", "cast", "replaced", "merged"]
BaseWeights = Literal["original", "dequant", "requant"]

_FLOATING = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor to be written.

    `parameter` is its name in the model, empty for what no single parameter is; `base` the tensor
    it comes from, `whole` the one that takes its place; `module` is adapted where it is merged.
    `quantised`: what was in 8 bits while it was trained, and is rounded to that first.
    """

    spec: Spec
    kind: Kind
    parameter: str = ""
    base: Stored | None = None
    whole: Stored | None = None
    module: str = ""
    quantised: bool = False


@dataclass(frozen=True, slots=True)
class Outline:
    """All tensors in the order they are written, and what a reader should know of them.

    `untied`: a tied pair is two tensors now; `dropped` are keys of the base that this model has no
    use for; `added` are names that the base has not.
    """

    outputs: tuple[Output, ...]
    untied: bool = False
    dropped: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())


def outline(
    built: Skeleton,
    base: Mapping[str, Stored],
    changes: Changes,
    *,
    dtype: torch.dtype | None,
    quantised: frozenset[str] = frozenset(),
) -> Outline:
    """Lay out the merged model. Raises `CheckFailed` naming what does not fit together.

    `dtype` is that of all floating tensors, None for each its own; `quantised` names the linear
    layers that were in 8 bits while training.
    """
    parameters = dict(built.model.named_parameters(remove_duplicate=False))
    here = built.model.state_dict()
    tied = _tied(parameters)
    changed = _changed(built, changes, parameters)
    sources = {name: _source(name, built, tied) for name in here}
    untied = _untied(changes, changed, tied)
    written = [n for n in here if sources[n] is not None or n in changes.replaced]
    # Of a tied group that stays tied, one name is written: the checkpoint's.
    if not untied:
        written = [n for n in written if n in built.names or n in changes.replaced or n not in tied]
    missing = sorted(n for n in here if n not in written and not (n in tied and not untied))
    missing = [n for n in missing if n not in _buffers(built.model)]
    if missing and not any(name in built.converted for name in missing):
        raise CheckFailed(
            f"{missing[0]} is neither in the base's files nor in {changes.source}"
            f"{f', and {len(missing) - 1} more' if len(missing) > 1 else ''}; they do not belong "
            "together."
        )
    fresh = [n for n in written if n not in built.names]
    rename = bool(fresh) and any(n != key for n, key in built.names.items())
    outputs = []
    for name in _in_order(written, built, base):
        source = sources[name]
        stored = None if source is None else base[source]
        outputs.append(
            _output(
                name, name if rename else built.names.get(name, name), stored, changes, changed,
                here[name], dtype, quantised,
            )
        )  # fmt: skip
    for keys in built.converted.values():
        for key in keys:
            outputs.append(_copied(key, "", base[key], dtype))
    return Outline(tuple(outputs), untied, built.unread, tuple(fresh))


def _changed(
    built: Skeleton, changes: Changes, parameters: Mapping[str, nn.Parameter]
) -> dict[str, str]:
    """The adapted module of each parameter that an adapter changes."""
    found: dict[str, str] = {}
    for module in changes.adapted:
        try:
            layer = built.model.get_submodule(module)
        except AttributeError:
            raise CheckFailed(
                f"{changes.source} adapts {module}, which {type(built.model).__name__} has not; "
                "the base is another model."
            ) from None
        for name, _ in layer.named_parameters(recurse=False):
            full = f"{module}.{name}"
            if full in built.converted:
                raise CheckFailed(
                    f"{changes.source} adapts {module}, which Transformers makes out of "
                    f"{len(built.converted[full])} tensors of the checkpoint; that is not merged."
                )
            found[full] = module
    state = built.model.state_dict()
    for name, whole in changes.replaced.items():
        if name not in state:
            raise CheckFailed(
                f"{changes.source} holds {name}, which {type(built.model).__name__} has not; the "
                "base or its head is another."
            )
        if tuple(state[name].shape) != whole.shape:
            raise CheckFailed(
                f"{changes.source} holds {name} as {whole.shape}, and the base has it as "
                f"{tuple(state[name].shape)}; the base is another model."
            )
    return found


def _tied(parameters: Mapping[str, nn.Parameter]) -> dict[str, tuple[str, ...]]:
    """The names of each parameter that has several."""
    groups: dict[int, list[str]] = defaultdict(list)
    for name, parameter in parameters.items():
        groups[id(parameter)].append(name)
    return {n: tuple(names) for names in groups.values() if len(names) > 1 for n in names}


def _source(name: str, built: Skeleton, tied: Mapping[str, tuple[str, ...]]) -> str | None:
    """The checkpoint's key for a parameter, by its own name or one that it is tied to."""
    if name in built.names:
        return built.names[name]
    return next((built.names[n] for n in tied.get(name, ()) if n in built.names), None)


def _untied(
    changes: Changes, changed: Mapping[str, str], tied: Mapping[str, tuple[str, ...]]
) -> bool:
    """Whether one of a tied pair becomes another tensor than the other."""
    for name, names in tied.items():
        if name in changed:
            return True
        if name in changes.replaced:
            others = [n for n in names if n != name]
            trained = _saved_as_module(name, changes)
            if any(n not in changes.replaced for n in others) and trained:
                return True
            if any(_differs(changes.replaced[name], changes.replaced.get(n)) for n in others):
                return True
    return False


def _saved_as_module(name: str, changes: Changes) -> bool:
    """Whether a parameter was trained whole, rather than saved because the table was resized."""
    if changes.peft is None:
        return False
    saved = changes.peft.modules_to_save or ()
    module = name.rpartition(".")[0]
    return any(module == s or module.endswith(f".{s}") for s in saved)


def _differs(one: Stored, other: Stored | None) -> bool:
    if other is None:
        return False
    same = one.size == other.size and all(
        a == b for a, b in zip(one.chunks(), other.chunks(), strict=True)
    )
    return not same


def _buffers(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_buffers()}


def _in_order(written: list[str], built: Skeleton, base: Mapping[str, Stored]) -> list[str]:
    """As the base's files have them, then what is new."""
    place = {key: i for i, key in enumerate(base)}
    return sorted(written, key=lambda n: place[built.names[n]] if n in built.names else len(place))


def _output(
    name: str,
    written_as: str,
    stored: Stored | None,
    changes: Changes,
    changed: Mapping[str, str],
    here: torch.Tensor,
    dtype: torch.dtype | None,
    quantised: frozenset[str],
) -> Output:
    module = name.rpartition(".")[0]
    in_8bit = module in quantised and name.endswith(".weight")
    if name in changed:
        if stored is None:
            raise CheckFailed(f"{changes.source} adapts {changed[name]}, which the base has not.")
        if tuple(here.shape) != stored.shape:
            raise CheckFailed(
                f"the base has {name} as {stored.shape}, where {tuple(here.shape)} is wanted."
            )
        spec = Spec(written_as, _dtype(stored.dtype, dtype), stored.shape)
        return Output(spec, "merged", name, stored, module=changed[name], quantised=in_8bit)
    if name in changes.replaced:
        whole = changes.replaced[name]
        at_rest = whole.dtype if stored is None else stored.dtype
        spec = Spec(written_as, _dtype(at_rest, dtype), whole.shape)
        return Output(spec, "replaced", name, stored, whole)
    assert stored is not None
    found = _copied(written_as, name, stored, dtype)
    if in_8bit:
        return Output(found.spec, "cast", name, stored, quantised=True)
    return found


def _copied(written_as: str, parameter: str, stored: Stored, dtype: torch.dtype | None) -> Output:
    wanted = _dtype(stored.dtype, dtype)
    kind: Kind = "copied" if wanted == stored.dtype else "cast"
    return Output(Spec(written_as, wanted, stored.shape), kind, parameter, stored)


def _dtype(stored: str, wanted: torch.dtype | None) -> str:
    if stored not in DTYPES:
        raise CheckFailed(f"the base holds {stored}, a dtype that is not merged.")
    return NAMES[wanted] if wanted is not None and stored in _FLOATING else stored
