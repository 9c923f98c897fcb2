"""From a file and overrides to a `RunConfig`, or to a message that says what to change."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from peftlab.config.loading import keys
from peftlab.config.loading.bench_rows import check_bench
from peftlab.config.loading.overrides import TAGGED, Override, parse_override, plain, set_value
from peftlab.config.loading.problems import explain, path_of, raise_problems
from peftlab.config.loading.reading import (
    check_format,
    check_method,
    check_metrics,
    check_roles,
    check_scope,
    check_validation,
    unread,
)
from peftlab.config.loading.source import KeyPath, Source, read_yaml
from peftlab.config.methods.options import DEFAULT
from peftlab.config.schema import RunConfig

NEEDED = frozenset({"model", "task", "data", "method"})
_STAND_IN: dict[str, Any] = {"method": {"name": DEFAULT}}
"""The values of sections that a command does not need, where they are not set."""


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A configuration, the dotted keys that were set rather than left alone, and its file."""

    config: RunConfig
    set_keys: frozenset[str]
    source: Path | None


def load_config(
    path: str | Path | None,
    overrides: Sequence[str | Override] = (),
    *,
    need: frozenset[str] = NEEDED,
) -> LoadedConfig:
    """Read a YAML file (or none) and lay `key.path=value` overrides over it.

    `need`: sections that must be set; without `method` in it a missing method is LoRA. Raises
    `ConfigError` with one line for each problem: place, full key, what is allowed.
    """
    file = None if path is None else Path(path)
    source = Source("configuration") if file is None else read_yaml(file)
    return _load(source, overrides, need, file)


def config_from_mapping(
    mapping: Mapping[str, Any], overrides: Sequence[str | Override] = ()
) -> RunConfig:
    """A configuration from nested mappings. Raises `ConfigError` as `load_config` does."""
    source = Source("configuration", plain(mapping))
    return _load(source, overrides, NEEDED, None).config


def _load(
    source: Source, overrides: Sequence[str | Override], need: frozenset[str], file: Path | None
) -> LoadedConfig:
    _tidy(source)
    parsed = [o if isinstance(o, Override) else parse_override(o) for o in overrides]
    for override in parsed:
        set_value(source, override)
    for section in NEEDED - need:
        if source.values.get(section) is None and section in _STAND_IN:
            source.values[section] = copy.deepcopy(_STAND_IN[section])
    config = _validate(source, parsed)
    problems = [
        *unread(config),
        *check_metrics(config),
        *check_validation(config),
        *check_format(config),
        *check_scope(config),
        *check_method(config),
        *check_roles(config),
        *check_bench(config),
    ]
    raise_problems(problems, source)
    return LoadedConfig(config, frozenset(map(keys.dotted, _set_keys(config))), file)


def _tidy(source: Source) -> None:
    """Bare names become sections; sections with every key commented out are empty."""
    values = source.values
    for tagged in TAGGED:
        if isinstance(values.get(tagged), str):
            values[tagged] = {"name": values[tagged]}
    for path in (
        *((name,) for name in RunConfig.model_fields),
        ("data", "reader"),
        ("data", "splits"),
        ("eval", "generation"),
    ):
        *parents, last = path
        container: Any = values
        for step in parents:
            container = container.get(step) if isinstance(container, dict) else None
        if isinstance(container, dict) and last in container and container[last] is None:
            annotation, _ = keys.at(path, {})
            if len(keys.sections_of(annotation)) == 1:
                container[last] = {}


def _validate(source: Source, overrides: Sequence[Override]) -> RunConfig:
    errors = _errors(source.values)
    for override in overrides:
        if not isinstance(errors, RunConfig) and _is_wrong(override.path, errors, source.values):
            errors = _reread(source, override, errors)
    if isinstance(errors, RunConfig):
        return errors
    problems = explain(errors, source.values)
    raise_problems(problems, source)
    raise AssertionError("pydantic refused the configuration without saying why")


def _errors(values: dict[str, Any]) -> RunConfig | list[Any]:
    try:
        return RunConfig.model_validate(values)
    except ValidationError as invalid:
        return list(invalid.errors(include_url=False, include_input=False))


def _is_wrong(path: KeyPath, errors: list[Any], values: dict[str, Any]) -> bool:
    return any(path_of(error, values) == path for error in errors)


def _reread(source: Source, override: Override, errors: list[Any]) -> RunConfig | list[Any]:
    """Try the other readings of an override: text for a number, a list for one name."""
    annotation, _ = keys.at(override.path, source.values)
    allowed = "" if annotation is None else keys.describe(annotation)
    for reading in override.readings(allowed):
        again = Override(override.path, reading, override.text, override.label)
        set_value(source, again)
        outcome = _errors(source.values)
        if isinstance(outcome, RunConfig) or not _is_wrong(override.path, outcome, source.values):
            return outcome
    set_value(source, override)
    return errors


def _set_keys(section: BaseModel, path: KeyPath = ()) -> Iterator[KeyPath]:
    for name in sorted(section.model_fields_set):
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _set_keys(value, (*path, name))
        else:
            yield (*path, name)
