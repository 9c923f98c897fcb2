"""A run's configuration on disk, and the rule that what is resumed is what was begun."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from peftlab import run_folder
from peftlab.config import dump_yaml, load_config, resolved_mapping
from peftlab.errors import ConfigError

if TYPE_CHECKING:
    from peftlab.pipeline.preparation import Prepared
    from peftlab.run_folder import Staging

COMPARED = frozenset({"model", "task", "data", "method", "regularization"})
"""Sections that the weights depend on, but for `train`, which every checkpoint holds itself."""


def write_config(prepared: Prepared, staging: Staging) -> None:
    """Write the resolved configuration before training, or hold a resumed run to the one written.

    Raises `ConfigError` naming the keys that differ: what is resumed must be what was begun.
    """
    config = prepared.checked.config
    pinned = config.model_copy(
        update={
            "model": config.model.model_copy(update={"revision": prepared.loaded.revision}),
            "train": config.train.model_copy(update={"learning_rate": prepared.learning_rate}),
            "output": config.output.model_copy(update={"dir": str(staging.final)}),
        }
    )
    file = staging.folder / run_folder.CONFIG
    if staging.resume is not None and file.is_file():
        begun = _flat(resolved_mapping(load_config(file).config))
        now = _flat(resolved_mapping(pinned))
        differing = sorted(
            key
            for key in begun.keys() | now.keys()
            if begun.get(key) != now.get(key) and key.split(".")[0] in COMPARED
        )
        if differing:
            lines = [f"  {key}: was {begun.get(key)}, now {now.get(key)}" for key in differing]
            raise ConfigError(
                f"The unfinished run in {staging.folder} was begun with another configuration:\n"
                + "\n".join(lines)
                + "\nResume with the same, or start again with output.overwrite=true."
            )
    file.write_text(dump_yaml(resolved_mapping(pinned)), encoding="utf-8")


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one mapping of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping) and key != "columns":
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
