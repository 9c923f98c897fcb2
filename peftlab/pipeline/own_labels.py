"""The order of labels: that of a checkpoint with a head for them, or that of the run resumed."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from peftlab.errors import ConfigError
from peftlab.files import read_json, write_json
from peftlab.pipeline import preparation

if TYPE_CHECKING:
    from peftlab.model.loading import LoadedModel
    from peftlab.pipeline.preparation import Checked

logger = logging.getLogger("peftlab")

LABELS = "labels.json"
"""In an unfinished run: the labels in the order of its head's rows."""


def in_checkpoint_order(checked: Checked) -> Checked:
    """The task with its labels in the order of the checkpoint's head, where they are the same.

    The head's rows then stay where they are, in training, export and every file.
    """
    from peftlab.model.checkpoint import read_checkpoint_config
    from peftlab.model.own_labels import in_own_order, own_labels

    config, names = checked.config, checked.splits.label_names
    if names is None or config.model.head == "new":
        return checked
    checkpoint = read_checkpoint_config(
        config.model.name,
        revision=config.model.revision,
        trust_remote_code=config.model.trust_remote_code,
    )
    own = own_labels(checkpoint.config)
    ordered = None if own is None else in_own_order(own, names)
    if ordered is None or ordered == names:
        return checked
    logger.info("labels in the order of %s: %s", config.model.name, ", ".join(ordered[:12]))
    return _in_order(checked, ordered)


def as_begun(checked: Checked, folder: Path) -> Checked:
    """The task with its labels in the order in which an unfinished run in `folder` was begun.

    Raises `ConfigError` where the labels are others now.
    """
    names, file = checked.splits.label_names, folder / LABELS
    if names is None:
        return checked
    if file.is_file():
        begun = tuple(read_json(file)["labels"])
        if set(begun) != set(names):
            changed = sorted(set(begun) ^ set(names))
            raise ConfigError(
                f"The unfinished run in {folder} was begun with other labels (such as "
                f"{changed[0]!r}); restore the data, or start again with output.overwrite=true."
            )
        return checked if begun == names else _in_order(checked, begun)
    # A run of a version that sorted names by code point.
    whole = all(name.removeprefix("-").isdecimal() for name in names)
    if checked.splits.names_declared or whole or tuple(sorted(names)) == names:
        return checked
    return _in_order(checked, tuple(sorted(names)))


def write_order(checked: Checked, folder: Path) -> None:
    """Write the order of the labels beside an unfinished run's checkpoints."""
    if checked.splits.label_names is not None:
        write_json(folder / LABELS, {"labels": list(checked.splits.label_names)})


def _in_order(checked: Checked, names: tuple[str, ...]) -> Checked:
    from peftlab.tasks.registry import task_class

    config = checked.config
    splits = replace(checked.splits, label_names=names)
    task = task_class(config.task.name).from_splits(splits, config.task)
    return replace(checked, splits=splits, task=preparation.with_settings(task, config))


def check_head(checked: Checked, loaded: LoadedModel) -> None:
    """Raise `CheckFailed` where training would go on from a head for other labels."""
    from peftlab.model.own_labels import check_own_labels, keeps_own_head

    labels = checked.task.head().config.get("id2label")
    if not isinstance(labels, dict) or loaded.pooling is not None:
        return
    if not keeps_own_head(loaded.model):
        return
    note = check_own_labels(checked.config.model.name, loaded.own_labels, labels)
    if note is not None:
        logger.warning("%s: %s", checked.config.model.name, note)
