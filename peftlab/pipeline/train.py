"""The main job: check, load, freeze, train, evaluate, and write a run folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab import run_folder
from peftlab.config import parse_bytes
from peftlab.data.bad_rows import write_dropped
from peftlab.pipeline import amounts, preparation
from peftlab.pipeline.fingerprints import begin_on_base
from peftlab.pipeline.fusing import decide_verdicts, recorded_choices
from peftlab.pipeline.measures import best_metric, evaluation_batch
from peftlab.pipeline.opened import LoadedRun
from peftlab.pipeline.own_labels import LABELS, write_order
from peftlab.pipeline.record import Trained, write_run
from peftlab.pipeline.resumption import write_config
from peftlab.pipeline.run import Run

if TYPE_CHECKING:
    from torch import nn

    from peftlab.config import RunConfig
    from peftlab.pipeline.preparation import Prepared
    from peftlab.run_folder import Staging
    from peftlab.tasks.task import Batch
    from peftlab.training.trainer import TrainResult

logger = logging.getLogger("peftlab")


def train(config: RunConfig, *, resume: str | Path = "never") -> Run:
    """Train as configured and return the finished run, with its model loaded.

    `resume`: never, auto (the newest checkpoint of an unfinished run into the same folder), or a
    checkpoint's path. Raises `ConfigError`, `DataError`, `CheckFailed` before anything is written;
    `Interrupted` after a checkpoint was saved. The run folder appears when it is complete.
    """
    final = preparation.output_folder(config)
    checkpoint = run_folder.check_free(final, overwrite=config.output.overwrite, resume=resume)
    checked = preparation.check(config)
    _import_all()
    import torch

    from peftlab.measure.allocator import keep_large_buffers
    from peftlab.measure.memory import PeakMemory
    from peftlab.methods.trained_part import START
    from peftlab.model.precision import training_device

    preparation.check_settings(checked)
    if config.train.allocator == "auto":
        keep_large_buffers()
    with PeakMemory(device=torch.device(training_device())) as memory:
        prepared = preparation.prepare(checked, checkpoint=checkpoint)
        # Only now: staging may remove an earlier unfinished run, and this one has been validated.
        with run_folder.stage(final, overwrite=config.output.overwrite, resume=resume) as staging:
            write_config(prepared, staging)
            write_order(prepared.checked.splits, staging.folder)
            write_dropped(prepared.checked.splits.dropped, staging.folder)
            begin_on_base(config, prepared.loaded, prepared.applied.model, staging)
            if prepared.applied.start is not None:
                prepared.applied.start.save(staging.folder)
            with recorded_choices(staging.folder, prepared.fusion):
                trained = _train(prepared, staging)
                decide_verdicts(prepared.fusion)
                (staging.folder / START).unlink(missing_ok=True)
                (staging.folder / LABELS).unlink(missing_ok=True)
                write_run(prepared, trained, memory, staging.folder)
    loaded = LoadedRun(prepared.applied.model, prepared.loaded.tokenizer, prepared.loaded.compute)
    return replace(Run.open(final), trained=loaded)


def _import_all() -> None:
    """Import what the run needs, so that the libraries' memory is not counted as the run's."""
    import matplotlib.figure  # noqa: F401
    import peft  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import transformers.trainer  # noqa: F401


def _train(prepared: Prepared, staging: Staging) -> Trained:
    """Train on the rows; where the whole base is frozen, on features computed from them once."""
    needed = (
        ("train",) if prepared.checked.config.eval.every == "never" else ("train", "validation")
    )
    rows = {name: prepared.encoded[name].rows for name in needed if name in prepared.encoded}
    applied, method = prepared.applied, prepared.checked.config.method
    if method.features_limit is not None:
        from peftlab.methods.features.cache import cache_features

        cache = cache_features(
            applied,
            rows,
            prepared.collator,
            limit_bytes=parse_bytes(method.features_limit),
            batch_size=evaluation_batch(prepared.checked.config),
            compute_dtype=prepared.loaded.compute,
            folder=staging.folder,
        )
        if cache is not None:
            with cache:
                result = _train_on(prepared, staging, cache.head, cache.rows, cache.collator)
            # Features of validation rows are evaluation, which training time does not include.
            return Trained(result, cache.seconds["train"])
    return Trained(_train_on(prepared, staging, applied.model, rows, prepared.collator), 0.0)


def _train_on(
    prepared: Prepared,
    staging: Staging,
    model: nn.Module,
    rows: Mapping[str, Any],
    collator: Callable[[Sequence[Batch]], Batch],
) -> TrainResult:
    from peftlab.evaluation import evaluate
    from peftlab.training.trainer import train as train_model

    config, task = prepared.checked.config, prepared.checked.task
    compute = prepared.loaded.compute

    def validate(module: nn.Module) -> dict[str, float]:
        size = evaluation_batch(config)
        return evaluate(
            module, task, rows["validation"], collator, batch_size=size, compute_dtype=compute
        ).metrics

    metric = best_metric(config, task)
    return train_model(
        model,
        task,
        rows["train"],
        collator=collator,
        settings=config.train,
        learning_rate=prepared.learning_rate,
        micro_batch_size=amounts.micro_batch(config),
        staging=staging.folder,
        evaluate=validate if "validation" in rows else None,
        evaluate_every=config.eval.every,
        early_stopping_patience=config.eval.early_stopping_patience,
        best_metric=metric,
        greater_is_better=task.greater_is_better[metric],
        compute_dtype=compute,
        report_to=config.output.report_to,
        regularizer=prepared.regularizer,
        learning_rates=prepared.learning_rates,
        hooks=prepared.hooks,
        resume=staging.resume,
    )
