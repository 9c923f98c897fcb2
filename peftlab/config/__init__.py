"""The configuration: read from YAML and overrides, checked, written out again. No heavy imports."""

from peftlab.config.bench_rows import parse_method, row_training
from peftlab.config.checks import parse_bytes
from peftlab.config.json_schema import json_schema
from peftlab.config.loader import LoadedConfig, config_from_mapping, load_config
from peftlab.config.resolved import dump_yaml, resolved_mapping
from peftlab.config.schema import MethodConfig, RunConfig
from peftlab.config.template import template

__all__ = [
    "LoadedConfig",
    "MethodConfig",
    "RunConfig",
    "config_from_mapping",
    "dump_yaml",
    "json_schema",
    "load_config",
    "parse_bytes",
    "parse_method",
    "resolved_mapping",
    "row_training",
    "template",
]
