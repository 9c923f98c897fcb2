"""`key.path=value` on the command line: parsed, and laid over what a file says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from peftlab.config.checks import spellings
from peftlab.config.loading import keys
from peftlab.config.loading.source import KeyPath, Source, parse_value
from peftlab.errors import ConfigError

TAGGED = frozenset({"method", "task"})
"""Keys whose bare value is the name in a section: `task: causal-lm`."""

_KEY = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*")


@dataclass(frozen=True, slots=True)
class Override:
    """A key to set. `text` is the value as it was typed, `label` how messages name the place."""

    path: KeyPath
    value: Any
    text: str
    label: str

    def readings(self, allowed: str) -> Iterator[Any]:
        """Other values that the typed text may mean, since a shell removes its quotes.

        `allowed`: what the key takes, in words. A number out of range is not read as text.
        """
        if "number" not in allowed:
            yield self.text
        if isinstance(self.value, str):
            if isinstance(number := parse_value(self.value, self.label), int | float):
                yield number
            if "a list" in allowed:
                yield [part.strip() for part in self.value.split(",") if part.strip()]


def is_override(argument: str) -> bool:
    """Whether a command line argument has the form `key.path=value`."""
    key, equals, _ = argument.partition("=")
    return bool(equals) and _KEY.fullmatch(key) is not None


def parse_override(argument: str) -> Override:
    """Read `key.path=value`, the value as YAML. Raises `ConfigError`."""
    label = f"override {argument}"
    key, equals, text = argument.partition("=")
    if not equals:
        raise ConfigError(f"{label}: has no `=`; write key.path=value, as in train.seed=1.")
    if not is_override(argument):
        raise ConfigError(f"{label}: {key!r} is no key; write key.path=value, as in train.seed=1.")
    path = tuple(int(part) if part.isdecimal() else part for part in key.split("."))
    return Override(path, parse_value(text, label), text, label)


def set_value(source: Source, override: Override) -> None:
    """Lay one override over a source. Raises `ConfigError` for an index beyond a list's end."""
    path = override.path
    container: Any = source.values
    for depth, step in enumerate(path[:-1], start=1):
        inner = _inside(container, step, path[:depth], override)
        if isinstance(inner, str) and step in TAGGED:
            inner = {"name": inner}
        if isinstance(path[depth], int) and not isinstance(inner, list):
            raise ConfigError(
                f"{override.label}: {keys.dotted(path[:depth])} is no list in the file; "
                f"set it whole, {keys.dotted(path[:depth])}=[...]."
            )
        if not isinstance(inner, dict | list):
            inner = {}
        container[step] = inner
        container = inner
    last = path[-1]
    _inside(container, last, path, override)
    if isinstance(container, dict):
        _drop_other_spellings(source, path, container, override)
    for known in [p for p in source.origins if p[: len(path)] == path]:
        del source.origins[known]
    container[last] = override.value
    source.origins[path] = override.label


def _inside(container: Any, step: str | int, path: KeyPath, override: Override) -> Any:
    if isinstance(container, dict):
        return container.get(step)
    if not isinstance(step, int) or step >= len(container):
        raise ConfigError(
            f"{override.label}: {keys.dotted(path[:-1])} is a list of {len(container)}; "
            f"its items are numbered from 0."
        )
    return container[step]


def _drop_other_spellings(
    source: Source, path: KeyPath, container: dict[str, Any], override: Override
) -> None:
    """Let `method.lora_alpha=8` replace a file's `alpha`, as it says the same key."""
    section = keys.section_at(path[:-1], source.values)
    if section is None:
        return
    for name, field in section.model_fields.items():
        names = spellings(name, field)
        if path[-1] not in names:
            continue
        for other in names:
            where = source.origins.get((*path[:-1], other), "")
            if other != path[-1] and (not where or where.startswith(f"{source.label}:")):
                container.pop(other, None)
                source.origins.pop((*path[:-1], other), None)


def overrides_of(sections: Mapping[str, Any]) -> list[Override]:
    """Keyword arguments as overrides: a mapping sets key by key, one with a name replaces all."""
    overrides: list[Override] = []
    for name, value in sections.items():
        if isinstance(value, Mapping) and "name" not in value:
            overrides += [
                Override(
                    (name, str(key)), plain(inner), str(inner), f"argument {name}.{key}={inner!r}"
                )
                for key, inner in value.items()
            ]
        else:
            path = tuple(name.split("."))
            overrides.append(Override(path, plain(value), str(value), f"argument {name}={value!r}"))
    return overrides


def plain(value: Any) -> Any:
    """A copy in the types that YAML has: paths become text, tuples lists."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, PurePath) else value
