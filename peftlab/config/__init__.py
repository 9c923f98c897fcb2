"""The configuration: read from YAML and overrides, checked, written out again. No heavy imports."""

from peftlab.config.checks import parse_bytes
from peftlab.config.loading.bench_rows import parse_method, row_training
from peftlab.config.loading.json_schema import json_schema
from peftlab.config.loading.loader import LoadedConfig, config_from_mapping, load_config
from peftlab.config.loading.resolved import dump_yaml, resolved_mapping
from peftlab.config.loading.template import template
from peftlab.config.methods.options import MethodOptions
from peftlab.config.schema import RunConfig

__all__ = [
    "LoadedConfig",
    "MethodOptions",
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
