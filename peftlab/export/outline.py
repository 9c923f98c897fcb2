"""Every tensor of a merged model before it is computed: name, dtype, shape and source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from peftlab.errors import CheckFailed
from peftlab.export.changes import Changes
from peftlab.export.safetensors_files import DTYPES, NAMES, Spec, Stored
from peftlab.export.skeleton import Skeleton, tied_names
from peftlab.export.tied import under_stored_names, untied_by

Kind = Literal["copied", "cast", "replaced", "merged", "rows", "scales", "format"]
"""`scales` and `format` belong to a weight that is written in 8 bits, bitsandbytes' names."""

BaseWeights = Literal["original", "dequant", "requant"]

_FLOATING = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor to be written.

    `parameter` is its name in the model, empty where no single parameter corresponds; `base` the
    tensor it comes from, `whole` the one that replaces it; `module` is the adapted module of a
    merged one; `rows` replace single rows, by their indices. `quantised`: in 8 bits during
    training, and therefore quantised first, after rounding to `through` if given; `scales` belong
    to a base that is stored as codes; `in_8bit`: written as codes. `transposed`: the rows of its
    8-bit form are columns here (GPT-2's Conv1D).
    """

    spec: Spec
    kind: Kind
    parameter: str = ""
    base: Stored | None = None
    whole: Stored | None = None
    module: str = ""
    rows: tuple[tuple[int, ...], Stored] | None = None
    quantised: bool = False
    through: torch.dtype | None = None
    scales: Stored | None = None
    in_8bit: bool = False
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Outline:
    """All tensors in the order they are written, and how they differ from the base's.

    `untied`: a tied pair is two tensors now; `dropped` are keys of the base that this model does
    not use; `added` are names that the base lacks.
    """

    outputs: tuple[Output, ...]
    untied: bool = False
    dropped: tuple[str, ...] = ()
    added: tuple[str, ...] = ()


def outline(
    built: Skeleton,
    base: Mapping[str, Stored],
    changes: Changes,
    *,
    dtype: torch.dtype | None,
    at_rest: torch.dtype,
    quantised: frozenset[str] = frozenset(),
    through: torch.dtype | None = None,
    requantise: bool = False,
) -> Outline:
    """Lay out the merged model. Raises `CheckFailed` naming what does not fit together.

    `dtype` is that of all floating tensors, None to keep each its own, and `at_rest` that of
    tensors that the base has in 8 bits; `quantised` names the linear layers that were in 8 bits
    during training, quantised from weights rounded to `through`, and `requantise` writes them in
    8 bits again.
    """
    here = built.model.state_dict()
    tied = tied_names(built.model)
    changed = _changed(built, changes)
    sources = {name: _source(name, built, tied) for name in here}
    untied = untied_by(changes, changed, tied)
    if not untied:
        changes = under_stored_names(changes, built, tied)
    written = [n for n in here if sources[n] is not None or n in changes.replaced]
    # Of a tied group that stays tied, one name is written: the checkpoint's.
    if not untied:
        written = [n for n in written if n in built.names or n in changes.replaced or n not in tied]
    follow = set(tied) if not untied else set()
    missing = sorted(here.keys() - {*written, *follow, *_buffers(built.model), *built.converted})
    if missing:
        raise CheckFailed(
            f"{missing[0]} is neither in the base's files nor in {changes.source}"
            f"{f', and {len(missing) - 1} more' if len(missing) > 1 else ''}; they do not belong "
            "together."
        )
    fresh = [n for n in written if n not in built.names]
    rename = bool(fresh) and any(n != key for n, key in built.names.items())
    made = _Outputs(built.model, base, changes, changed, dtype, at_rest, quantised, through)
    outputs = [
        made.of(name, name if rename else built.names.get(name, name), sources[name], here[name])
        for name in _in_order(written, built, base)
    ]
    if requantise:
        outputs = [each for output in outputs for each in _in_8_bits(output)]
    for keys in built.converted.values():
        for key in keys:
            outputs.append(made.copied(key, "", base[key]))
    return Outline(tuple(outputs), untied, built.unread, tuple(fresh))


def _changed(built: Skeleton, changes: Changes) -> dict[str, str]:
    """The adapted module of each parameter that an adapter changes."""
    modules: dict[str, str] = {}
    for module, parts in changes.adapted.items():
        try:
            layer = built.model.get_submodule(module)
        except AttributeError:
            raise CheckFailed(
                f"{changes.source} adapts {module}, which is not in {type(built.model).__name__}; "
                "the base is another model."
            ) from None
        biased = any(part.endswith(".bias") for part in parts)
        for name, _ in layer.named_parameters(recurse=False):
            if name == "bias" and not biased:
                continue  # An adapter leaves the bias alone, unless it has one of its own.
            full = f"{module}.{name}"
            if full in built.converted:
                raise CheckFailed(
                    f"{changes.source} adapts {module}, which Transformers builds from "
                    f"{len(built.converted[full])} tensors of the checkpoint; not mergeable."
                )
            modules[full] = module
    state = built.model.state_dict()
    for name in changes.rows:
        if name not in state:
            raise CheckFailed(f"{changes.source} trains rows of {name}, which is not in the base.")
    for name, whole in {**changes.replaced, **changes.bases}.items():
        if name not in state:
            raise CheckFailed(
                f"{changes.source} holds {name}, which is not in {type(built.model).__name__}; the "
                "base or its head is another."
            )
        if tuple(state[name].shape) != whole.shape:
            raise CheckFailed(
                f"{changes.source} holds {name} as {whole.shape}, and the base has it as "
                f"{tuple(state[name].shape)}; the base is another model."
            )
    return modules


def _source(name: str, built: Skeleton, tied: Mapping[str, tuple[str, ...]]) -> str | None:
    """The checkpoint's key for a parameter, by its own name or one that it is tied to."""
    if name in built.names:
        return built.names[name]
    return next((built.names[n] for n in tied.get(name, ()) if n in built.names), None)


def _buffers(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_buffers()}


def _in_order(written: list[str], built: Skeleton, base: Mapping[str, Stored]) -> list[str]:
    """In the order of the base's files, new ones last."""
    place = {key: i for i, key in enumerate(base)}
    return sorted(written, key=lambda n: place[built.names[n]] if n in built.names else len(place))


@dataclass(frozen=True, slots=True)
class _Outputs:
    """Builds the outputs of one outline."""

    model: nn.Module
    base: Mapping[str, Stored]
    changes: Changes
    changed: Mapping[str, str]
    dtype: torch.dtype | None
    at_rest: torch.dtype
    quantised: frozenset[str]
    through: torch.dtype | None

    def of(self, name: str, written_as: str, key: str | None, here: torch.Tensor) -> Output:
        """The output of a parameter that comes from `key`, None where the base has none."""
        changes, shape = self.changes, tuple(here.shape)
        stored = None if key is None else self.base[key]
        if name in changes.replaced:
            whole = changes.replaced[name]
            at_rest = whole.dtype if stored is None else stored.dtype
            spec = Spec(written_as, self._dtype(at_rest), whole.shape)
            return Output(spec, "replaced", name, stored, whole)
        if key is None or stored is None:
            raise CheckFailed(f"{changes.source} changes {name}, which is not in the base.")
        scales = self.base.get(f"{key.removesuffix('weight')}SCB") if stored.dtype == "I8" else None
        spec = Spec(written_as, self._dtype(stored.dtype, codes=scales is not None), shape)
        stored = changes.bases.get(name, stored)
        module = name.rpartition(".")[0]
        rounded = module in self.quantised and name.endswith(".weight")
        transposed = (rounded or scales is not None) and _is_conv1d(self.model, module)
        if stored.shape != (shape[::-1] if transposed and scales is not None else shape):
            raise CheckFailed(
                f"the base has {name} as {stored.shape}, but the model needs {shape}."
            )
        if name in self.changed:
            return Output(
                spec, "merged", name, stored, module=self.changed[name], quantised=rounded,
                through=self.through, scales=scales, transposed=transposed,
            )  # fmt: skip
        if name in changes.rows:
            return Output(spec, "rows", name, stored, rows=changes.rows[name])
        if rounded or scales is not None:
            return Output(
                spec, "cast", name, stored, quantised=rounded, through=self.through,
                scales=scales, transposed=transposed,
            )  # fmt: skip
        return self.copied(written_as, name, stored)

    def copied(self, written_as: str, parameter: str, stored: Stored) -> Output:
        """A tensor as the base has it, or in another dtype."""
        wanted = self._dtype(stored.dtype)
        kind: Kind = "copied" if wanted == stored.dtype else "cast"
        return Output(Spec(written_as, wanted, stored.shape), kind, parameter, stored)

    def _dtype(self, stored: str, *, codes: bool = False) -> str:
        if stored not in DTYPES:
            raise CheckFailed(f"the base holds {stored}, a dtype that cannot be merged.")
        if codes:
            return NAMES[self.dtype or self.at_rest]
        return NAMES[self.dtype] if self.dtype is not None and stored in _FLOATING else stored


def _in_8_bits(output: Output) -> tuple[Output, ...]:
    """A weight that was in 8 bits as codes, scales and bitsandbytes' layout format."""
    if not output.quantised and output.scales is None:
        return (output,)
    shape = output.spec.shape[::-1] if output.transposed else output.spec.shape
    stem = output.spec.name.removesuffix("weight")
    return (
        replace(output, spec=Spec(output.spec.name, "I8", shape), in_8bit=True),
        Output(Spec(f"{stem}SCB", "F32", shape[:1]), "scales"),
        Output(Spec(f"{stem}weight_format", "U8", ()), "format"),
    )


def _is_conv1d(model: nn.Module, module: str) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(model.get_submodule(module), Conv1D)
