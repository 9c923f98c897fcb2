"""Evaluation: one definition for every split, during training and after."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from peftlab.errors import DataError
from peftlab.model.mode import evaluating

if TYPE_CHECKING:
    import datasets

    from peftlab.tasks.task import Batch, RowScores, Task


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`metrics` of a split, and the `scores` they come from: arrays whose first axis is the rows,
    in the rows' order; where batches differ in width, an array of arrays."""

    metrics: dict[str, float]
    scores: RowScores


def evaluate(
    model: nn.Module,
    task: Task,
    rows: datasets.Dataset | Sequence[Batch],
    collator: Callable[[Sequence[Batch]], Batch],
    *,
    batch_size: int,
    compute_dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Evaluation:
    """Score all rows without dropout or gradient, and reduce the scores to metrics.

    Rows are batched by length, longest first: padding is least, and a batch that exceeds memory
    fails at once. The modules' modes are restored. `device` is the model's by default. Draws no
    random numbers. Raises `DataError` without rows.
    """
    count = len(rows)
    if not count:
        raise DataError("There are no rows to evaluate; give a split that has some.")
    target = device or next(model.parameters()).device
    order = _longest_first(rows)
    parts: list[RowScores] = []
    starts = range(0, count, batch_size)
    with (
        evaluating(model),
        torch.inference_mode(),
        torch.autocast(target.type, dtype=torch.bfloat16, enabled=compute_dtype == torch.bfloat16),
    ):
        for start in tqdm(
            starts,
            desc="evaluate",
            dynamic_ncols=True,
            leave=False,
            file=sys.stderr,
            disable=not sys.stderr.isatty(),
        ):
            batch = collator(_take(rows, order[start : start + batch_size]))
            batch.pop("tokens", None)
            parts.append(task.score(model, _move(batch, target)))
    back = np.argsort(np.asarray(order))
    scores = {name: _joined([part[name] for part in parts])[back] for name in parts[0]}
    return Evaluation(metrics=task.metrics(scores), scores=scores)


def _joined(parts: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """The batches' arrays as one; an array of objects where batches differ in width."""
    if len({part.shape[1:] for part in parts}) == 1:
        return np.concatenate(parts)
    joined = np.empty(sum(map(len, parts)), dtype=object)
    for index, row in enumerate(row for part in parts for row in part):
        joined[index] = row
    return joined


def _longest_first(rows: datasets.Dataset | Sequence[Batch]) -> list[int]:
    """Row numbers by decreasing length; in order where rows have no tokens (cached features)."""
    if isinstance(rows, Sequence):
        if not isinstance(rows[0], Mapping) or "input_ids" not in rows[0]:
            return list(range(len(rows)))
        lengths = [len(row["input_ids"]) for row in rows]
    else:
        if "input_ids" not in rows.column_names:
            return list(range(len(rows)))
        lengths = [
            len(ids) for ids in rows.select_columns(["input_ids"]).with_format(None)["input_ids"]
        ]
    return sorted(range(len(rows)), key=lambda row: -lengths[row])


def _take(rows: datasets.Dataset | Sequence[Batch], numbers: Sequence[int]) -> list[Batch]:
    fetch = getattr(rows, "__getitems__", None)
    if fetch is not None:
        batch: list[Batch] = fetch(list(numbers))
        return batch
    return [rows[number] for number in numbers]


def _move(batch: Batch, device: torch.device) -> dict[str, Any]:
    return {
        key: value.to(device) if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
    }
