"""Class weights in the loss, against imbalance."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from peftlab.errors import ConfigError, did_you_mean

logger = logging.getLogger("peftlab")

_MOST_ROWS, _TIMES = 0.8, 10
"""The share of all rows that one class has, and how many times those of another, to warn."""

Setting = Literal["balanced"] | Mapping[str, float] | None


def class_weights(
    setting: Setting, label_names: Sequence[str], counts: NDArray[Any]
) -> tuple[float, ...] | None:
    """A weight for each class, or None without a setting.

    `counts` [classes]: items of each class in training. balanced is `items / (classes * count)`,
    as in scikit-learn: the mean weight of a training item is 1, so the loss keeps its scale. A
    class without items, or missing from a mapping, weighs 1. Raises `ConfigError` for a name that
    is not a label.
    """
    if setting is None:
        return None
    if setting == "balanced":
        present = counts > 0
        balanced = counts.sum() / (max(int(present.sum()), 1) * np.maximum(counts, 1))
        return tuple(np.where(present, balanced, 1.0).tolist())
    _check_names(setting, label_names)
    return tuple(float(setting.get(name, 1.0)) for name in label_names)


def positive_weights(
    setting: Setting, label_names: Sequence[str], counts: NDArray[Any], rows: int
) -> tuple[float, ...] | None:
    """A weight of the positive rows, for each label of a multi-label problem.

    balanced is the ratio of negative to positive rows: both sides then weigh the same. Raises as
    `class_weights`.
    """
    if setting != "balanced":
        return class_weights(setting, label_names, counts)
    either = (counts > 0) & (counts < rows)
    return tuple(np.where(either, (rows - counts) / np.maximum(counts, 1), 1.0).tolist())


def warn_of_imbalance(counts: Mapping[str, int]) -> None:
    """Warn where one class has most rows, or a class has far fewer than another; with what to do.

    `counts`: training rows by class; classes without rows are told of elsewhere.
    """
    present = {name: count for name, count in counts.items() if count}
    if len(present) < 2:
        return
    most, least = max(present, key=present.__getitem__), min(present, key=present.__getitem__)
    share = present[most] / sum(present.values())
    if share < _MOST_ROWS and present[most] < _TIMES * present[least]:
        return
    logger.warning(
        "the classes are imbalanced: %r has %d training rows and %r has %d, so that always "
        "answering %r is right for %.1f %%; task.class_weights=balanced gives every class the same "
        "weight, and eval.best=f1_macro chooses by all of them alike",
        most, present[most], least, present[least], most, 100 * share,
    )  # fmt: skip


def _check_names(setting: Mapping[str, float], label_names: Sequence[str]) -> None:
    for name in setting:
        if name not in label_names:
            hint = did_you_mean(name, label_names)
            shown = ", ".join(label_names[:20])
            raise ConfigError(
                f"task.class_weights names {name!r}, which is not a label{hint or ';'} "
                f"labels are {shown}."
            )
