"""Writes the commented YAML that `peftlab init` starts a project with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo

from peftlab.config.loading.loader import config_from_mapping
from peftlab.config.loading.reading import who_reads, why_unread
from peftlab.config.loading.resolved import dump_yaml
from peftlab.config.methods.options import METHODS
from peftlab.config.schema import RunConfig, Section

_COLUMN = 46
"""Where comments start."""


def template(model: str, task: str, data: str, method: str) -> str:
    """YAML that runs as it stands, every other key commented out at its default.

    Raises `ConfigError` for an unknown task or method.
    """
    mapping = {
        "model": {"name": model},
        "task": task,
        "data": {"source": data},
        "method": {"name": method, **(METHODS[method].example if method in METHODS else {})},
    }
    config = config_from_mapping(mapping)
    lines = [
        "# Check it:  peftlab plan THIS.yaml      Run it:  peftlab train THIS.yaml",
        "# Commented lines show defaults. Any key can be set on the command line: train.seed=1",
        "",
    ]
    for name, field in RunConfig.model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Section):
            lines += [f"# {field.description}", *_section(name, value, config), ""]
        else:
            lines += [_line(f"{name}: {_scalar(value)}", _comment(field)), ""]
    return "\n".join(lines).rstrip() + "\n"


def _section(name: str, section: Section, config: RunConfig, indent: str = "") -> Iterator[str]:
    """A section's lines. Its own name stands uncommented, so that single keys can be."""
    yield f"{indent}{name}:"
    inner = f"{indent}  "
    for key, field in type(section).model_fields.items():
        mark = who_reads(type(section), key)
        if why_unread(mark, config.task, config.method) is not None:
            continue
        value = getattr(section, key)
        if isinstance(value, Section):
            yield from _section(key, value, config, inner)
        elif key == "columns":
            roles = ", ".join(f"{role}: {role}" for role in config.task.example_roles)
            yield _line(f"{inner}# {key}: {{{roles}}}", _comment(field))
        else:
            hidden = "" if key in section.model_fields_set else "# "
            yield _line(f"{inner}{hidden}{key}: {_scalar(value)}", _comment(field))


def _line(text: str, comment: str) -> str:
    return f"{text.ljust(_COLUMN)}  # {comment}" if comment else text


def _comment(field: FieldInfo) -> str:
    text = field.description or ""
    return text if text.endswith("...") else text.removesuffix(".")


def _scalar(value: Any) -> str:
    """A value in YAML's flow style, in one line."""
    if isinstance(value, list):
        return f"[{', '.join(_scalar(item) for item in value)}]"
    if isinstance(value, float):
        return f"{value:g}"
    text = dump_yaml({"x": value}).strip()
    return text.removeprefix("x: ")
