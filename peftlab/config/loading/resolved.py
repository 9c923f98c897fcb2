"""Writes a configuration out: every key that is read, as YAML that can be run again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from peftlab.config.loading.reading import read_mapping
from peftlab.config.loading.source import parse_value
from peftlab.config.schema import BenchConfig, RunConfig


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 could take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    try:
        plain = parse_value(value, "text") == value
    except Exception:
        # Text that is no YAML on its own, brackets and the like, which PyYAML quotes anyway.
        plain = True
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain else "'")


_Dumper.add_representer(str, _text)


def resolved_mapping(config: RunConfig) -> dict[str, Any]:
    """All keys that the run's task and method read, defaults written out, in the schema's order.

    `bench` is left out where it holds its defaults: a run does not read it.
    """
    mapping = read_mapping(config, config.task, config.method)
    if config.bench == BenchConfig():
        del mapping["bench"]
    return mapping


def dump_yaml(mapping: Mapping[str, Any]) -> str:
    """A mapping as YAML text. Loading it gives the same values."""
    # No line is folded: the template puts a value in one line, and people search for whole paths.
    return yaml.dump(
        dict(mapping), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf")
    )
