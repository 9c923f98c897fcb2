"""The configuration as JSON Schema, for editors that complete and check YAML."""

from __future__ import annotations

import re
from typing import Any

from peftlab.config.checks import spellings
from peftlab.config.loading import keys
from peftlab.config.schema import BenchRow, RunConfig, Section


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a configuration file, with every spelling of every key."""
    schema = RunConfig.model_json_schema()
    for section in _sections(RunConfig, set()):
        definition = schema if section is RunConfig else _definition(schema, section)
        properties = definition["properties"]
        for name, field in section.model_fields.items():
            written = next(s for s in spellings(name, field) if s in properties)
            for spelling in spellings(name, field):
                properties.setdefault(spelling, properties[written])
    # A bare name stands for the method, or the task, with its defaults.
    for key, definition in (
        ("method", schema),
        ("method", _definition(schema, BenchRow)),
        ("task", schema),
    ):
        whole = definition["properties"][key]
        description = {k: whole.pop(k) for k in ("description", "title") if k in whole}
        names = {"enum": keys.tags_at((key,), {})}
        definition["properties"][key] = description | {"anyOf": [names, whole]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _definition(schema: dict[str, Any], section: type[Section]) -> dict[str, Any]:
    """A section's definition, which has its module's name too where two classes are alike."""
    whole = re.sub(r"\W", "_", f"{section.__module__}.{section.__qualname__}".replace(".", "__"))
    definitions = schema["$defs"]
    definition: dict[str, Any] = definitions[
        section.__name__ if section.__name__ in definitions else whole
    ]
    return definition


def _sections(section: type[Section], seen: set[type[Section]]) -> set[type[Section]]:
    seen.add(section)
    for field in section.model_fields.values():
        for inner in keys.sections_of(field.annotation):
            if inner not in seen:
                _sections(inner, seen)
    return seen
