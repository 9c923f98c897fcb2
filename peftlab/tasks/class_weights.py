"""Class weights in the loss, against imbalance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from peftlab.errors import ConfigError, did_you_mean

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


def _check_names(setting: Mapping[str, float], label_names: Sequence[str]) -> None:
    for name in setting:
        if name not in label_names:
            hint = did_you_mean(name, label_names)
            shown = ", ".join(label_names[:20])
            raise ConfigError(
                f"task.class_weights names {name!r}, which is not a label{hint or ';'} "
                f"labels are {shown}."
            )
