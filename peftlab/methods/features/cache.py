"""Method `head`: what the frozen base says about each row, computed once and trained on.

Legend: B rows, T tokens, H features.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from peftlab.config.tasks.options import TASKS
from peftlab.methods.features.store import (
    FeatureRows,
    FeatureStore,
    Row,
    allocate,
    collate_features,
)
from peftlab.methods.method import Applied
from peftlab.model.heads import FeatureHead, PooledClassifier
from peftlab.model.mode import evaluating
from peftlab.model.precision import training_device

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger("peftlab")

TOLERANCE = 1e-5
"""Relative to the largest logit: how closely features must give the whole model's logits."""
_CHECKED_ROWS = 4


@dataclass(frozen=True, slots=True)
class FeatureCache:
    """Train `head` on `rows[split]` with `collator`; the model it belongs to is trained by that.

    `seconds[split]` is the wall time that its features took, setting up counted to the first split.
    A context manager: leaving it frees the features and removes their file.
    """

    head: FeatureHead
    rows: Mapping[str, FeatureRows]
    collator: Callable[[Sequence[Row]], Row]
    store: FeatureStore
    seconds: Mapping[str, float]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.store.close()


def cache_features(
    applied: Applied,
    splits: Mapping[str, datasets.Dataset],
    collator: Callable[[Sequence[Row]], Row],
    *,
    limit_bytes: int,
    batch_size: int = 32,
    compute_dtype: torch.dtype = torch.float32,
    folder: Path | None = None,
) -> FeatureCache | None:
    """Compute the features of all rows of the splits, the base in eval mode, without gradient.

    Above `limit_bytes` they go to a mapped file in `folder`. Returns None, having said why, where
    this model's head cannot be trained on features alone; then train it on the rows themselves.
    On the first batch the logits from features must equal the model's within `TOLERANCE`.
    """
    since = time.perf_counter()
    head, reason = feature_head(applied)
    if head is None:
        logger.warning("features are not cached: %s; each step runs the base", reason)
        return None
    model = applied.model.to(training_device())
    with _computing(model, compute_dtype):
        head.eval()
        first = next(iter(splits.values()))
        batch = _move(collator(_take(first, range(min(_CHECKED_ROWS, len(first))))), head.device)
        features = _features(model, head, batch)
        readable = features.dim() == (3 if head.kind == "causal" else 2)
        if not readable or not _equal(model, head, batch, features):
            logger.warning(
                "features are not cached: the head on features alone does not give the model's "
                "logits; each step runs the base"
            )
            return None
        sizes = {
            name: _lengths(split) if head.kind == "causal" else [1] * len(split)
            for name, split in splits.items()
        }
        store = _room(sum(map(sum, sizes.values())), features, limit_bytes, folder)
        if store is None:
            return None
        rows: dict[str, FeatureRows] = {}
        seconds: dict[str, float] = {}
        start = 0
        for name, split in splits.items():
            starts = [start + before for before in accumulate(sizes[name], initial=0)]
            others: list[Row] = [{} for _ in range(len(split))]
            for numbers in _batches(split, batch_size):
                batch = _move(collator(_take(split, numbers)), head.device)
                _keep(store, starts, others, numbers, batch, _features(model, head, batch))
            rows[name] = FeatureRows(store, starts[:-1], others)
            start = starts[-1]
            now = time.perf_counter()
            seconds[name], since = now - since, now
    return FeatureCache(head, rows, collate_features, store, seconds)


def feature_head(applied: Applied) -> tuple[FeatureHead | None, str]:
    """The model's own head on features, or None and the reason why there is none."""
    model: Any = applied.model
    if isinstance(model, PooledClassifier):
        return FeatureHead(model.head, model.config, kind="classification"), ""
    if len(applied.head_modules) != 1:
        return None, f"{', '.join(applied.head_modules)} train, not one head"
    head = model.get_submodule(applied.head_modules[0])
    kept = TASKS[applied.task].features
    if kept is None:
        return None, f"{applied.task} has no features to keep"
    if kept == "token":
        if head is not model.get_output_embeddings():
            return None, f"{applied.head_modules[0]} is not the output embeddings"
        return FeatureHead(head, model.config, kind="causal"), ""
    drops = [child.p for child in model.children() if isinstance(child, nn.Dropout)]
    if len(drops) > 1:
        return None, "there are several dropouts before the head"
    dropout = drops[0] if drops else 0.0
    return FeatureHead(head, model.config, kind="classification", dropout=dropout), ""


def _features(model: nn.Module, head: FeatureHead, batch: Row) -> torch.Tensor:
    """What the head is given for a batch: [B, H], or [B, T, H] for a language model."""
    inputs = _inputs(batch)
    if isinstance(model, PooledClassifier):
        return model.features(**inputs)
    if head.kind == "causal":
        decoder: Any = model.get_decoder()  # type: ignore[operator]
        hidden: torch.Tensor = decoder(**inputs | {"use_cache": False}).last_hidden_state
        return hidden
    given: list[torch.Tensor] = []
    handle = head.head.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    try:
        model(**inputs)
    finally:
        handle.remove()
    return given[0]


def _inputs(batch: Row) -> Row:
    """What the base reads; packed rows are kept apart where there is neither mask nor cache."""
    inputs = {name: value for name, value in batch.items() if name not in {"labels", "tokens"}}
    if "position_ids" in inputs:
        inputs = {**inputs, "attention_mask": None, "use_cache": False}
    return inputs


def _equal(model: nn.Module, head: FeatureHead, batch: Row, features: torch.Tensor) -> bool:
    """Whether both ways give the same logits."""
    inputs = _inputs(batch)
    whole = model(**inputs).logits.float()
    kept = head(features=features).logits.float()
    if whole.shape != kept.shape:
        return False
    scale = max(1.0, float(whole.abs().max()))
    return float((whole - kept).abs().max()) <= TOLERANCE * scale


def _room(
    total: int, features: torch.Tensor, limit: int, folder: Path | None
) -> FeatureStore | None:
    width, dtype = features.shape[-1], features.dtype
    store = allocate(total, width, dtype, limit, folder)
    size = total * width * dtype.itemsize / 2**20
    if store is None:
        logger.warning(
            "features are not cached: %.0f MiB are above method.cache_limit, and the disk has no "
            "room for them; each step runs the base",
            size,
        )
    elif store.mapped:
        logger.warning(
            "features take %.0f MiB, above method.cache_limit: they lie in a mapped file, which is "
            "removed afterwards",
            size,
        )
    else:
        logger.info("features of %d vectors kept in %.1f MiB", total, size)
    return store


def _keep(
    store: FeatureStore,
    starts: Sequence[int],
    others: list[Row],
    numbers: Sequence[int],
    batch: Row,
    features: torch.Tensor,
) -> None:
    """Write one batch's features and what else training reads of its rows."""
    causal = features.dim() == 3
    mask = batch["attention_mask"].bool()
    tokens = mask.sum(1).tolist()
    for i, number in enumerate(numbers):
        if causal:
            real = mask[i]
            store.vectors[starts[number] : starts[number + 1]] = features[i][real].cpu()
            others[number] = {
                "input_ids": batch["input_ids"][i][real].cpu(),
                "labels": batch["labels"][i][real].cpu(),
                "tokens": tokens[i],
            }
        else:
            store.vectors[starts[number]] = features[i].cpu()
            others[number] = {"labels": batch["labels"][i].cpu(), "tokens": tokens[i]}


@contextmanager
def _computing(model: nn.Module, compute_dtype: torch.dtype) -> Iterator[None]:
    """Eval mode and no gradient inside, in the run's arithmetic; each module's own mode after."""
    kind = next(model.parameters()).device.type
    reduced = compute_dtype is not torch.float32
    narrow = torch.autocast(kind, dtype=torch.bfloat16, enabled=reduced)
    with evaluating(model), torch.no_grad(), narrow:
        yield


def _lengths(split: datasets.Dataset) -> list[int]:
    return [len(ids) for ids in split.select_columns(["input_ids"]).with_format(None)["input_ids"]]


def _batches(split: datasets.Dataset, size: int) -> Iterator[list[int]]:
    """Row numbers in batches of like length: the least padding."""
    lengths = _lengths(split)
    order = sorted(range(len(split)), key=lambda row: -lengths[row])
    return (order[start : start + size] for start in range(0, len(order), size))


def _take(split: datasets.Dataset, numbers: Sequence[int]) -> list[Row]:
    rows: list[Row] = split.__getitems__(list(numbers))
    return rows


def _move(batch: Row, device: torch.device) -> Row:
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
