"""Explains pydantic's errors, one line a problem: the place, the key and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import ErrorDetails

from peftlab.config.checks import AT_KEY
from peftlab.config.loading import keys
from peftlab.config.loading.source import KeyPath, Source, parse_value
from peftlab.errors import ConfigError, did_you_mean

_MOST_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Problem:
    """One error: the key's path, and the message that follows its name."""

    path: KeyPath
    message: str

    def line(self, source: Source) -> str:
        """The problem with the place where the key was written."""
        end = "" if self.message.endswith(("?", ")")) else "."
        return f"{source.origin(self.path)}: {keys.dotted(self.path)} {self.message}{end}"


def raise_problems(problems: list[Problem], source: Source) -> None:
    """Raise `ConfigError` with a line for each problem, if there is any."""
    if not problems:
        return
    lines = [problem.line(source) for problem in problems[:_MOST_SHOWN]]
    if len(problems) > _MOST_SHOWN:
        lines.append(f"... and {len(problems) - _MOST_SHOWN} more.")
    raise ConfigError("\n".join(dict.fromkeys(lines)))


def explain(errors: list[ErrorDetails], values: Mapping[str, Any]) -> list[Problem]:
    """One problem for every key that has errors.

    A union reports errors for every member; the deepest are those of the member that was meant.
    """
    at_path: dict[KeyPath, list[ErrorDetails]] = {}
    for error in errors:
        at_path.setdefault(path_of(error, values), []).append(error)
    paths = list(at_path)
    return [
        _explain(path, at_key, values)
        for path, at_key in at_path.items()
        if not any(len(other) > len(path) and other[: len(path)] == path for other in paths)
    ]


def path_of(error: ErrorDetails, values: Any) -> KeyPath:
    """The key that an error is about: its location without the tags of unions."""
    path: list[str | int] = []
    *_, last = error["loc"] or ("",)
    for step in error["loc"]:
        if keys.has_child(values, step):
            values = keys.child(values, step)
        elif error["type"] != "missing" or step is not last:
            continue
        path.append(step)
    if error["type"] == AT_KEY:
        path.append(error["ctx"]["key"])
    elif error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        path.append("name")
    return tuple(path)


def _explain(path: KeyPath, errors: list[ErrorDetails], values: Mapping[str, Any]) -> Problem:
    error = errors[0]
    kinds = {e["type"] for e in errors}
    if AT_KEY in kinds:
        return Problem(path, next(e["ctx"]["message"] for e in errors if e["type"] == AT_KEY))
    if "extra_forbidden" in kinds:
        return Problem(path, unknown(path, values))
    if "invalid_key" in kinds or any("[key]" in e["loc"] for e in errors):
        return Problem(path, "is no key: keys are text")
    annotation, field = keys.at(path, values)
    if kinds & {"missing", "union_tag_not_found"}:
        what = f" ({field.description.rstrip('.')})" if field and field.description else ""
        if "union_tag_not_found" in kinds:
            what = f"; allowed: {', '.join(keys.tags_at(path[:-1], values))}"
        return Problem(path, f"is missing{what}")
    given = _value_at(path, values)
    if "union_tag_invalid" in kinds:
        if isinstance(bare := _value_at(path[:-1], values), str):
            given = bare
        tags = keys.tags_at(path[:-1], values)
        return Problem(path, mistaken(given, ", ".join(tags), tags))
    if "size" in kinds:
        return Problem(path, mistaken(given, error["msg"], []))
    if annotation is None:
        return Problem(path, f"is {shown(given)}: {error['msg']}")
    metadata = tuple(field.metadata) if field is not None else ()
    if keys.sections_of(annotation) and not isinstance(given, Mapping):
        return Problem(path, _not_a_section(path, given, annotation))
    choices = [
        choice
        for part, own in keys.parts_of(annotation)
        for choice in keys.choices(part, (*own, *metadata))
    ]
    too_large = "less_than_equal" in kinds
    allowed = keys.describe(annotation, metadata, every_limit=too_large)
    return Problem(path, mistaken(given, allowed, choices))


def unknown(path: KeyPath, values: Mapping[str, Any]) -> str:
    """The message for a key that does not exist, or that only another method or task reads."""
    *parent, name = path
    section = keys.section_at(tuple(parent), values)
    if section is None:
        return "is unknown"
    here = keys.dotted(tuple(parent)) or "a configuration"
    listed = f"the keys of {here} are {', '.join(keys.keys_of(section))}"
    tag = keys.tag_of(section)
    if tag is not None and (others := keys.tags_with(tuple(parent), values, str(name))):
        listed = f"the keys of {tag} are {', '.join(keys.keys_of(section))}"
        own = {key: keys.dotted((*parent, key)) for key in keys.keys_of(section)}
        hint = did_you_mean(str(name), own, cutoff=0.5)
        kind = parent[-1] if parent else ""
        return f"is read by {kind} {' and '.join(others)}, not by {tag}{hint or ';'} {listed}"
    hint = keys.key_meant(path, section, _chosen_tags(values))
    if not hint:
        return f"is unknown; {listed}"
    few = f" ({listed})" if len(keys.keys_of(section)) <= 12 else ""
    return f"is unknown{hint}{few}"


def mistaken(value: Any, allowed: str, choices: list[str]) -> str:
    """The message for a value that is not allowed."""
    hint = ""
    if isinstance(value, str):
        hint = did_you_mean(value, choices)
        if not hint and "number" in allowed and _is_number(value):
            hint = f"; write {value}, without quotes"
        elif not hint and "a list" in allowed:
            hint = f"; write [{value}]"
    elif "text" in allowed and "number" not in allowed and isinstance(value, int | float):
        hint = f"; write '{shown(value)}', in quotes"
    return f"is {shown(value)}; allowed: {allowed}{hint}"


def shown(value: Any) -> str:
    """A value as YAML writes it, shortened."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return f"the list [{', '.join(map(shown, value[:4]))}{', ...' if len(value) > 4 else ''}]"
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of {value.bit_length()} bits"
    text = repr(value) if isinstance(value, str | int | float) else f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _not_a_section(path: KeyPath, given: Any, annotation: Any) -> str:
    sections = keys.sections_of(annotation)
    allowed = keys.describe(annotation)
    if all(keys.tag_of(section) for section in sections):
        tags = ", ".join(str(keys.tag_of(section)) for section in sections)
        allowed = f"{tags}, or a mapping with one of them as name"
    hint = ""
    if len(sections) == 1 and isinstance(given, str):
        first = keys.keys_of(sections[0])[0]
        hint = f"; did you mean {keys.dotted((*path, first))}: {given}?"
    return f"is {shown(given)}; allowed: {allowed}{hint}"


def _chosen_tags(values: Mapping[str, Any]) -> frozenset[str]:
    """The names of the method and the task; all names of either where it is missing or unknown."""
    tags: set[str] = set()
    for key in ("method", "task"):
        chosen = values.get(key)
        chosen = chosen.get("name") if isinstance(chosen, Mapping) else chosen
        known = keys.tags_at((key,), {})
        tags |= {chosen} if isinstance(chosen, str) and chosen in known else set(known)
    return frozenset(tags)


def _value_at(path: KeyPath, values: Any) -> Any:
    for step in path:
        values = keys.child(values, step)
    return values


def _is_number(text: str) -> bool:
    try:
        return isinstance(parse_value(text, "value"), int | float)
    except ConfigError:
        return False
