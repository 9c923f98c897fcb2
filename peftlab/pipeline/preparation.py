"""From a configuration to all that training needs: rows, task, model, and its trainable part.

In two steps, so that bad input fails within seconds: `check` reads the data before Transformers is
imported; `prepare` loads the model, or builds it without weights, and encodes the rows.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.errors import ConfigError
from peftlab.pipeline.amounts import chosen_length, optimizer_steps

if TYPE_CHECKING:
    from peftlab.config import RunConfig
    from peftlab.data.splits import Splits
    from peftlab.fusion import FusionReport
    from peftlab.methods.method import Applied, StepHooks
    from peftlab.methods.penalties.regularization import Regularizer
    from peftlab.model.loading import LoadedModel
    from peftlab.tasks.task import Batch, Encoded, Task, TokenStatistics

logger = logging.getLogger("peftlab")

_STARTING_BATCH, _STARTING_ROWS = 16, 512
"""Rows that a method may begin from."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A configuration whose data has been read and checked; no model yet."""

    config: RunConfig
    splits: Splits
    task: Task


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that training reads. `encoded` has the encoded splits by name.

    `learning_rates` are those that differ from `learning_rate`, by the parameters' names.
    """

    checked: Checked
    loaded: LoadedModel
    applied: Applied
    fusion: FusionReport | None
    encoded: Mapping[str, Encoded]
    collator: Callable[[Sequence[Batch]], Batch]
    max_length: int
    learning_rate: float
    learning_rates: Mapping[str, float]
    regularizer: Regularizer | None
    hooks: StepHooks | None = None


def check(config: RunConfig) -> Checked:
    """Read and check the data. Raises `DataError`, `ConfigError`."""
    from peftlab.data.loading import load_splits
    from peftlab.data.source import Source
    from peftlab.tasks.registry import task_class

    data = config.data
    splits = load_splits(
        Source(
            data.source, data.subset, data.format, data.columns, data.reader, data.splits.column
        ),
        label_names=data.label_names if "data.label_names" in config.task.reads else None,
        label_separator=data.label_separator,
        formats=config.task.formats,
        roles=config.task.roles,
        label_kind=config.task.label_kind,
        train=data.splits.train,
        validation=0.0 if data.splits.validation is None else data.splits.validation,
        test=data.splits.test,
        max_train_samples=_training_rows(config),
        max_eval_samples=data.max_eval_samples,
        seed=data.seed,
        streaming=data.streaming,
        on_bad_rows=data.on_bad_rows,
        duplicates=data.duplicates,
    )
    task = task_class(config.task.name).from_splits(splits, config.task)
    _check_metrics(config, task)
    return Checked(config, splits, with_settings(task, config))


def _training_rows(config: RunConfig) -> int | None:
    """Training rows to keep: as set, or of a stream as many as the steps take; None: all."""
    data, train = config.data, config.train
    if data.streaming and data.max_train_samples is None and train.max_steps is not None:
        return train.max_steps * train.global_batch_size
    return data.max_train_samples


def _check_metrics(config: RunConfig, task: Task) -> None:
    """Refuse metrics that the task does not report on this data."""
    names = [("eval.best", config.eval.best)] if config.eval.best != "auto" else []
    if config.eval.metrics != "auto":
        names += [("eval.metrics", name) for name in config.eval.metrics]
    for key, name in names:
        if name not in task.greater_is_better:
            raise ConfigError(
                f"{key} names {name!r}; {task.name}, as it is configured and on this data, "
                f"reports {', '.join(task.greater_is_better)}."
            )


def with_settings(task: Task, config: RunConfig) -> Task:
    """The task with the shared settings that it reads."""
    reads = config.task.reads
    return task.with_settings(
        loss=config.train.loss if "train.loss" in reads else "auto",
        generation=config.eval.generation.model_dump() if "eval.generation" in reads else None,
    )


def check_settings(checked: Checked) -> None:
    """Refuse settings that Trainer or this process does not support. Raises `ConfigError`."""
    from peftlab.training.process import refuse_many_processes
    from peftlab.training.trainer_names import check_choices, check_penalised

    config = checked.config
    refuse_many_processes()
    check_choices(
        optim=config.train.optim,
        lr_scheduler_type=config.train.lr_scheduler_type,
        report_to=config.output.report_to,
        evaluates=config.eval.every != "never" and checked.splits.validation is not None,
    )
    if config.regularization.penalises:
        check_penalised(config.train.optim, l1=config.regularization.l1)


def base_arguments(config: RunConfig) -> dict[str, Any]:
    """The keyword arguments by which `load_model` builds this run's base."""
    method = config.method
    return {
        "revision": config.model.revision,
        "dtype": config.model.dtype,
        "trust_remote_code": config.model.trust_remote_code,
        "load_in_8bit": method.loads_in == 8,
        "load_in_4bit": method.loads_in == 4,
        "new_head": config.model.head == "new",
        "fp32_at_rest": config.train.kernels == "off" or method.fp32_at_rest,
        "pooling": method.pools_by if "method.pooling" in config.task.reads else None,
    }


def encode(
    checked: Checked, tokenizer: Any, max_length: int, names: Sequence[str]
) -> tuple[Checked, dict[str, Encoded]]:
    """Encode those of the named splits that exist, and apply `data.truncation`.

    Rows that cannot be encoded are left out of the returned splits where `data.on_bad_rows` is
    drop.
    """
    from peftlab.pipeline.encoding import encode_split
    from peftlab.tasks.encoding import check_truncation

    data, splits = checked.config.data, checked.splits
    packing = data.packing if "data.packing" in checked.config.task.reads else False
    encoded: dict[str, Encoded] = {}
    for name in names:
        if getattr(splits, name) is None:
            continue
        splits, encoded[name] = encode_split(
            checked.task, splits, name, tokenizer, max_length=max_length, packing=packing,
            on_disk=data.streaming, on_bad_rows=data.on_bad_rows,
        )  # fmt: skip
        split = encoded[name]
        check_truncation(
            split.statistics, split=name, max_length=max_length, policy=data.truncation
        )
        if split.targets is not None:
            check_truncation(
                split.targets, split=targets_of(name), max_length=split.target_limit,
                policy=data.truncation, key="task.max_target_length",
            )  # fmt: skip
    return replace(checked, splits=splits), encoded


def statistics_of(encoded: Mapping[str, Encoded]) -> dict[str, TokenStatistics]:
    """Token statistics by split; separate targets follow the split they belong to."""
    statistics: dict[str, TokenStatistics] = {}
    for name, split in encoded.items():
        statistics[name] = split.statistics
        if split.targets is not None:
            statistics[targets_of(name)] = split.targets
    return statistics


def targets_of(split: str) -> str:
    """The name of a split's targets."""
    return f"{split} targets"


def prepare(checked: Checked, *, weights: bool = True, checkpoint: Path | None = None) -> Prepared:
    """Load the model (`weights=False`: shapes alone, on meta), apply the method, encode.

    `checkpoint` is the one that training will go on from.
    Raises `ConfigError`, `CheckFailed`, `DataError`; nothing has been written by then.
    """
    from transformers import set_seed

    from peftlab.methods.apply import apply_method, method_of
    from peftlab.methods.method import Beginning
    from peftlab.methods.penalties.penalised import regularizer
    from peftlab.model.loading import load_model
    from peftlab.pipeline.fingerprints import check_start
    from peftlab.pipeline.fusing import fuse_for
    from peftlab.pipeline.own_labels import check_head, in_order

    config = checked.config
    splits, task = in_order(checked.splits, checked.task, config, checkpoint)
    checked = replace(checked, splits=splits, task=with_settings(task, config))
    compared = check_start(config)
    # Seeded before loading, which initialises a new head; the adapter comes right after.
    set_seed(config.train.seed)
    loaded = load_model(
        config.model.name, checked.task.head(), weights=weights, **base_arguments(config)
    )
    if not compared:  # load_model has downloaded the base.
        check_start(config)
    if checkpoint is None:  # What is resumed was checked, or is older than this check.
        check_head(config.model.name, checked.task, loaded)
    for note in loaded.notes:
        logger.info("%s: %s", config.model.name, note)
    checked = replace(checked, task=checked.task.attach(loaded.tokenizer, loaded.model))
    applied = apply_method(
        loaded.model, config.method, task=config.task.name, tokens=checked.task.trained_tokens
    )
    max_length = chosen_length(config, loaded.max_length_limit)
    checked, encoded = encode(
        checked, loaded.tokenizer, max_length, ("train", "validation", "test")
    )
    collator = checked.task.collator(loaded.tokenizer)
    method = method_of(config.method)
    if weights:
        inputs = partial(_first_inputs, checked, encoded["train"].rows, collator)
        beginning = Beginning(config.train.seed, loaded.compute, inputs, checkpoint)
        applied = method.begin(applied, beginning)
    fusion = fuse_for(applied.model, loaded, config, level=logging.INFO)
    hooks = method.step_hooks(applied)
    if hooks is not None:
        hooks.begin(optimizer_steps(config.train, len(encoded["train"].rows)))
    rate = config.train.learning_rate
    if rate == "auto":
        rate = method.default_learning_rate(loaded.hidden_size)
    return Prepared(
        checked=checked,
        loaded=loaded,
        applied=applied,
        fusion=fusion,
        encoded=encoded,
        collator=collator,
        max_length=max_length,
        learning_rate=rate,
        learning_rates=method_of(config.method).learning_rates(applied, rate),
        # Of the model as it trains, with its fused layers.
        regularizer=regularizer(applied, config.regularization),
        hooks=hooks,
    )


def _first_inputs(
    checked: Checked, rows: Any, collator: Callable[[Sequence[Batch]], Batch]
) -> Iterator[Batch]:
    """The model's inputs of the first training rows, batch by batch, in their order."""
    count = min(len(rows), _STARTING_ROWS)
    for first in range(0, count, _STARTING_BATCH):
        batch = [rows[i] for i in range(first, min(first + _STARTING_BATCH, count))]
        if len(batch) == min(count, _STARTING_BATCH):  # a smaller last one has few positions
            yield checked.task.model_inputs(collator(batch))


def output_folder(config: RunConfig) -> Path:
    """`output.dir`, with auto resolved to `runs/MODEL-METHOD`. Raises `ConfigError`."""
    if config.output.dir != "auto":
        folder = Path(os.path.abspath(Path(config.output.dir).expanduser()))  # noqa: PTH100
        if folder in (Path.cwd(), *Path.cwd().parents):
            raise ConfigError(
                f"output.dir is {config.output.dir}, which holds the working directory; name a "
                "folder of the run's own, such as runs/one."
            )
        # As the user wrote it: messages and the saved configuration show it.
        return Path(config.output.dir).expanduser()
    model = Path(config.model.name).name or "model"
    return Path("runs") / f"{model}-{config.method.name}"
