"""The order of labels: that of a checkpoint with a head for them, or that of the run resumed."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from peftlab.errors import ConfigError
from peftlab.files import read_json, write_json

if TYPE_CHECKING:
    from peftlab.config import RunConfig
    from peftlab.config.schema import ModelConfig
    from peftlab.data.splits import Splits
    from peftlab.model.loading import LoadedModel
    from peftlab.tasks.task import Task

logger = logging.getLogger("peftlab")

LABELS = "labels.json"
"""In an unfinished run: the labels in the order of its head's rows."""


def in_order(
    splits: Splits, task: Task, config: RunConfig, checkpoint: Path | None
) -> tuple[Splits, Task]:
    """The splits and their task with the labels in the order of the head; see `order_of`.

    `checkpoint` is the one that training goes on from.
    """
    names = order_of(splits, config.model, None if checkpoint is None else checkpoint.parent)
    if names == splits.label_names:
        return splits, task
    splits = replace(splits, label_names=names)
    return splits, type(task).from_splits(splits, config.task)


def order_of(splits: Splits, model: ModelConfig, begun: Path | None) -> tuple[str, ...] | None:
    """The labels in the order of the head: the model's own, or that of a run resumed in `begun`.

    The rows of a checkpoint's head then stay where they are, in training, export and every file.
    Raises `ConfigError` where the labels are others than the run was begun with.
    """
    names = splits.label_names
    if names is None:
        return None
    return _of_checkpoint(names, model) if begun is None else _as_begun(splits, names, begun)


def _of_checkpoint(names: tuple[str, ...], model: ModelConfig) -> tuple[str, ...]:
    from peftlab.model.checkpoint import read_checkpoint_config
    from peftlab.model.own_labels import in_own_order, own_labels

    if model.head == "new":
        return names
    checkpoint = read_checkpoint_config(
        model.name, revision=model.revision, trust_remote_code=model.trust_remote_code
    )
    own = own_labels(checkpoint.config)
    ordered = None if own is None else in_own_order(own, names)
    if ordered is None or ordered == names:
        return names
    logger.info("labels in the order of %s: %s", model.name, ", ".join(ordered[:12]))
    return ordered


def _as_begun(splits: Splits, names: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    file = folder / LABELS
    if file.is_file():
        begun = tuple(read_json(file)["labels"])
        if set(begun) != set(names):
            changed = sorted(set(begun) ^ set(names))
            raise ConfigError(
                f"The unfinished run in {folder} was begun with other labels (such as "
                f"{changed[0]!r}); restore the data, or start again with output.overwrite=true."
            )
        return begun
    # A run of a version that sorted names by code point.
    whole = all(name.removeprefix("-").isdecimal() for name in names)
    return names if splits.names_declared or whole else tuple(sorted(names))


def write_order(splits: Splits, folder: Path) -> None:
    """Write the order of the labels beside an unfinished run's checkpoints."""
    if splits.label_names is not None:
        write_json(folder / LABELS, {"labels": list(splits.label_names)})


def check_head(name: str, task: Task, loaded: LoadedModel) -> None:
    """Raise `CheckFailed` where training would go on from a head for other labels."""
    from peftlab.model.own_labels import check_own_labels, keeps_own_head

    labels = task.head().config.get("id2label")
    if not isinstance(labels, dict) or loaded.pooling is not None:
        return
    if not keeps_own_head(loaded.model):
        return
    note = check_own_labels(name, loaded.own_labels, labels)
    if note is not None:
        logger.warning("%s: %s", name, note)
