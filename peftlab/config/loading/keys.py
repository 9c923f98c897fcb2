"""Walks the schema: its keys, what each takes, and the key that a mistaken name meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from peftlab.config.checks import spellings
from peftlab.config.loading.source import KeyPath
from peftlab.config.schema import RunConfig, Section
from peftlab.config.section import OneOf
from peftlab.config.tagged import TaggedSection
from peftlab.errors import did_you_mean

# Names from other tools, and what they are here.
_ELSEWHERE = {
    "lr": "train.learning_rate",
    "epochs": "train.num_train_epochs",
    "num_epochs": "train.num_train_epochs",
    "batch_size": "train.global_batch_size",
    "train_batch_size": "train.global_batch_size",
    "per_device_train_batch_size": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.global_batch_size",
    "per_device_eval_batch_size": "eval.batch_size",
    "optimizer": "train.optim",
    "scheduler": "train.lr_scheduler_type",
    "save_steps": "train.save_every",
    "save_strategy": "train.save_every",
    "eval_steps": "eval.every",
    "eval_strategy": "eval.every",
    "metric_for_best_model": "eval.best",
    "rank": "method.r",
    "lora_r": "method.r",
    "model_name": "model.name",
    "model_name_or_path": "model.name",
    "torch_dtype": "model.dtype",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "dataset": "data.source",
    "dataset_name": "data.source",
    "max_seq_length": "data.max_length",
    "output_dir": "output.dir",
    "overwrite_output_dir": "output.overwrite",
}

_HARDLY_MET = 1_000_000
"""Upper limits from here on guard against overflow; naming them would only distract."""


def dotted(path: KeyPath) -> str:
    """A key as messages and overrides write it."""
    return ".".join(map(str, path))


def parts_of(annotation: Any) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """The members of a union, each with its metadata, through `Annotated`."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *metadata = get_args(annotation)
        for part, own in parts_of(inner):
            yield part, (*own, *_flat(metadata))
    elif origin in (Union, UnionType):
        for member in get_args(annotation):
            yield from parts_of(member)
    else:
        yield annotation, ()


def _flat(metadata: list[Any]) -> Iterator[Any]:
    for item in metadata:
        yield from item.metadata if isinstance(item, FieldInfo) else (item,)


def sections_of(annotation: Any) -> list[type[Section]]:
    """The sections that an annotation names; of a tagged one, every kind."""
    sections: list[type[Section]] = []
    for part, _ in parts_of(annotation):
        if isinstance(part, type) and issubclass(part, Section):
            if issubclass(part, TaggedSection) and part.stands_for_all():
                sections += part.kinds.values()
            else:
                sections.append(part)
    return sections


def tag_of(section: type[Section]) -> str | None:
    """The name, of a method or a task, that a section is for, or None."""
    return section.tag() if issubclass(section, TaggedSection) else None


def field_named(section: type[Section], key: str | int) -> FieldInfo | None:
    """A section's field by any of its spellings."""
    for name, field in section.model_fields.items():
        if key in spellings(name, field):
            return field
    return None


def at(path: KeyPath, values: Any) -> tuple[Any, FieldInfo | None]:
    """What stands at a path of the schema, given what the values choose: annotation and field.

    The annotation is None where the schema has no such path.
    """
    annotation: Any = RunConfig
    field: FieldInfo | None = None
    for step in path:
        section = _chosen(sections_of(annotation), values)
        if section is not None:
            field = field_named(section, step)
            annotation = None if field is None else field.annotation
        else:
            field, annotation = None, _element(annotation)
        values = child(values, step)
        if annotation is None:
            return None, None
    return annotation, field


def section_at(path: KeyPath, values: Any) -> type[Section] | None:
    """The section at a path, given what the values choose."""
    annotation, _ = at(path, values)
    for step in path:
        values = child(values, step)
    return _chosen(sections_of(annotation), values)


def _chosen(sections: list[type[Section]], values: Any) -> type[Section] | None:
    name = values.get("name") if isinstance(values, Mapping) else values
    tagged = [s for s in sections if tag_of(s) == name and isinstance(name, str)]
    if tagged:
        return tagged[0]
    return sections[0] if len(sections) == 1 else None


def _element(annotation: Any) -> Any:
    """What a list's items or a mapping's values are."""
    for part, _ in parts_of(annotation):
        if get_origin(part) in (list, dict):
            return get_args(part)[-1]
    return None


def has_child(values: Any, step: str | int) -> bool:
    """Whether a value, which may be null, is under one step of a path."""
    if isinstance(values, Mapping):
        return step in values
    return isinstance(values, list) and isinstance(step, int) and step < len(values)


def child(values: Any, step: str | int) -> Any:
    """The value under one step of a path, or None."""
    return values[step] if has_child(values, step) else None


def every_key(tags: frozenset[str] | None) -> dict[str, FieldInfo]:
    """All dotted keys of some methods and tasks (None: of all), in every spelling."""
    return dict(_keys(RunConfig, (), tags))


def _keys(
    section: type[Section], path: KeyPath, tags: frozenset[str] | None
) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in section.model_fields.items():
        for spelling in spellings(name, field):
            yield dotted((*path, spelling)), field
        if name == "methods":
            continue
        for inner in sections_of(field.annotation):
            if tags is None or (tag_of(inner) or "") in {"", *tags}:
                yield from _keys(inner, (*path, name), tags)


def tags_at(path: KeyPath, values: Any) -> list[str]:
    """The names, of methods or of tasks, that may stand at a path."""
    annotation, _ = at(path, values)
    return [tag for section in sections_of(annotation) if (tag := tag_of(section)) is not None]


def tags_with(path: KeyPath, values: Any, key: str) -> list[str]:
    """The names at a path whose section has a key."""
    annotation, _ = at(path, values)
    return [
        str(tag_of(section))
        for section in sections_of(annotation)
        if field_named(section, key) is not None
    ]


def keys_of(section: type[Section]) -> list[str]:
    """A section's keys, each in its own spelling."""
    return list(section.model_fields)


def key_meant(path: KeyPath, section: type[Section], tags: frozenset[str]) -> str:
    """`; did you mean X?` with the dotted key that a mistaken one most likely meant, or nothing."""
    *parent, name = path
    known = every_key(tags)
    if (ours := _ELSEWHERE.get(str(name))) in known:
        return f"; did you mean {ours}?"
    spelt = [s for n, field in section.model_fields.items() for s in spellings(n, field)]
    here = {spelling: dotted((*parent, spelling)) for spelling in spelt}
    anywhere: dict[str, str] = {}
    for key in known:
        anywhere.setdefault(key.rpartition(".")[2], key)
    # A key of the same section is meant rather than one elsewhere that is as near.
    tries = ((here, 0.75), (anywhere, 0.85), (here, 0.5))
    hints = (did_you_mean(str(name), names, cutoff=cutoff) for names, cutoff in tries)
    return next(filter(None, hints), "")


def choices(part: Any, metadata: tuple[Any, ...]) -> list[str]:
    """The names that a member of a union allows, where it allows names alone."""
    if get_origin(part) is Literal:
        return list(map(str, get_args(part)))
    return [name for mark in metadata if isinstance(mark, OneOf) for name in mark.names()]


def describe(annotation: Any, metadata: tuple[Any, ...] = (), *, every_limit: bool = True) -> str:
    """What a key takes, in words; upper limits that nobody meets only with `every_limit`."""
    *others, last = [
        _describe_one(part, (*own, *metadata), every_limit) for part, own in parts_of(annotation)
    ]
    return f"{', '.join(others)} or {last}" if others else last


def _describe_one(part: Any, metadata: tuple[Any, ...], every_limit: bool) -> str:
    origin = get_origin(part)
    if names := choices(part, metadata):
        return ", ".join(names)
    if origin is list:
        return f"a list of {describe(get_args(part)[0])}"
    if origin is dict:
        return "a mapping"
    if isinstance(part, type) and issubclass(part, Section):
        return f"a mapping with {', '.join(keys_of(part))}"
    if part is int or part is float:
        kind = "a whole number" if part is int else "a number"
        return kind + _limits(metadata, every_limit)
    if form := _limit(metadata, "form"):
        return str(form)
    words = {str: "text", bool: "true or false", type(None): "null"}
    return words.get(part, "a value")


def _limits(metadata: tuple[Any, ...], every_limit: bool) -> str:
    at_least, above = _limit(metadata, "ge"), _limit(metadata, "gt")
    at_most, below = _limit(metadata, "le"), _limit(metadata, "lt")
    if at_most is not None and at_most >= _HARDLY_MET and not every_limit:
        at_most = None
    if at_least is not None and at_most is not None:
        return f" from {at_least} to {at_most}"
    named = {"of at least": at_least, "above": above, "at most": at_most, "below": below}
    words = [f"{word} {limit}" for word, limit in named.items() if limit is not None]
    return f" {' and '.join(words)}" if words else ""


def _limit(metadata: tuple[Any, ...], kind: str) -> Any:
    """A limit among the metadata of a number: annotated-types' Ge, Gt, Le and Lt."""
    limits = (getattr(mark, kind, None) for mark in metadata)
    return next((limit for limit in limits if limit is not None), None)
