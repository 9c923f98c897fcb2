"""Train a model on a task's rows: the entry point of training."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from transformers import PrinterCallback

from peftlab.config.schema import TrainConfig
from peftlab.errors import Interrupted
from peftlab.measure.memory import gradient_bytes, optimizer_bytes
from peftlab.methods.method import StepHooks
from peftlab.methods.penalties.regularization import Regularizer
from peftlab.tasks.task import Batch, Task
from peftlab.training import checkpoint, context
from peftlab.training.arguments import check_sizes, recorded_settings, training_arguments
from peftlab.training.callbacks import CheckpointCallback, ProgressBar
from peftlab.training.item_mean_trainer import Evaluate, ItemMeanTrainer
from peftlab.training.ledger import Ledger
from peftlab.training.process import StopSignals, refuse_many_processes
from peftlab.training.trainer_names import check_choices, check_penalised

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger("peftlab")


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The result of training. The model has the kept weights: the best, if there was a choice.

    `loss` is the mean over all items trained on. `metrics` are validation's at the kept weights
    (empty without evaluation), `best_step` and `best_epoch` where they were taken. `history` has
    one entry per logged point, as Trainer's: `step`, `epoch` and either `loss`, `grad_norm`,
    `learning_rate` or `eval_METRIC`; with penalties also `penalty`, their mean over the steps since
    the previous point, which `loss` does not include, and with l1 `sparsity`.
    `regularization` is `Regularizer.report` at the kept weights. `seconds` is the total,
    `training_seconds` excludes evaluating and saving; `tokens_per_second` counts over the latter. A
    resumed run counts from its start.
    """

    steps: int
    epochs: float
    loss: float
    metrics: Mapping[str, float]
    best_step: int | None
    best_epoch: float | None
    stopped_early: bool
    history: tuple[Mapping[str, float], ...]
    seconds: float
    training_seconds: float
    tokens: int
    tokens_per_second: float
    gradient_bytes: int
    optimizer_bytes: int
    regularization: Mapping[str, Any] | None = None


def train(
    model: nn.Module,
    task: Task,
    rows: datasets.Dataset | Sequence[Batch],
    *,
    collator: Callable[[Sequence[Batch]], Batch],
    settings: TrainConfig,
    learning_rate: float,
    micro_batch_size: int,
    staging: Path,
    evaluate: Evaluate | None = None,
    evaluate_every: Literal["epoch", "never"] | int = "epoch",
    early_stopping_patience: int | None = None,
    best_metric: str = "loss",
    greater_is_better: bool = False,
    compute_dtype: torch.dtype = torch.float32,
    report_to: Sequence[str] = (),
    regularizer: Regularizer | None = None,
    learning_rates: Mapping[str, float] | None = None,
    hooks: StepHooks | None = None,
    resume: Path | None = None,
) -> TrainResult:
    """Train the tensors that require a gradient, and leave the best of them in the model.

    `learning_rate` and `micro_batch_size` are those of `settings` with auto resolved.
    `evaluate` returns validation metrics; `best_metric` among them selects the weights. Activations
    are bf16 where `compute_dtype` is. `regularizer` penalises parameters of this model;
    `learning_rates` are those that differ, by the parameters' names; `hooks` are the method's, for
    which `begin` has been called. All files, checkpoints and reporters' logs, go to `staging`.
    Trainer chooses the device: CUDA if available.

    Raises `ConfigError` for unsupported settings, `CheckFailed` where the loss or a gradient is not
    finite (naming the step), `Interrupted` after a signal, with a checkpoint saved.
    """
    refuse_many_processes()
    evaluates = evaluate is not None and evaluate_every != "never"
    check_choices(
        optim=settings.optim,
        lr_scheduler_type=settings.lr_scheduler_type,
        report_to=report_to,
        evaluates=evaluates,
    )
    if regularizer is not None:
        check_penalised(settings.optim, l1=regularizer.settings.l1)
    check_sizes(settings.global_batch_size, micro_batch_size, compute_dtype)
    steps_per_epoch = math.ceil(len(rows) / settings.global_batch_size)
    recorded = recorded_settings(
        settings,
        learning_rate=learning_rate,
        rows=len(rows),
        best_metric=best_metric,
        greater_is_better=greater_is_better,
        regularization=None if regularizer is None else regularizer.settings,
        learning_rates=learning_rates,
    )
    ledger = Ledger(settings=recorded)
    if resume is not None:
        ledger = checkpoint.open_checkpoint(resume, staging)
        checkpoint.check_settings(ledger, recorded, resume)
    arguments = training_arguments(
        settings,
        learning_rate=learning_rate,
        micro_batch_size=micro_batch_size,
        staging=staging,
        steps=settings.max_steps or math.ceil(settings.num_train_epochs * steps_per_epoch),
        evaluate_every=evaluate_every if evaluates else "never",
        best_metric=best_metric,
        greater_is_better=greater_is_better,
        report_to=report_to,
    )
    signals = StopSignals()
    with (
        context.frozen_heap(),
        context.quiet_training(),
        context.reporters_into(staging),
        context.switched_for_training(
            model, gradient_checkpointing=settings.gradient_checkpointing
        ),
        signals,
    ):
        trainer = ItemMeanTrainer(
            model=model,
            args=arguments,
            data_collator=collator,
            train_dataset=rows,
            # Unused, but Trainer does not evaluate without it; `evaluate` has its own rows.
            eval_dataset=rows if evaluates else None,
            callbacks=[CheckpointCallback(ledger, signals, steps_per_epoch), ProgressBar()],
            task=task,
            ledger=ledger,
            evaluate=evaluate if evaluates else None,
            best_metric=best_metric,
            patience=early_stopping_patience,
            compute_dtype=compute_dtype,
            regularizer=regularizer,
            learning_rates=learning_rates or {},
            hooks=hooks,
        )
        trainer.remove_callback(PrinterCallback)
        _run(trainer, signals, resume)
        _keep_best(trainer, staging)
        result = _result(trainer, regularizer)
        # Optimizer and data loader are in reference cycles; what follows (a test split, a merge)
        # needs their memory.
        del trainer
        gc.collect()
    return result


def _run(trainer: ItemMeanTrainer, signals: StopSignals, resume: Path | None) -> None:
    """Train to the end; where the checkpoint is the end already, only load it."""
    if resume is not None and trainer.ledger.finished:
        trainer._load_from_checkpoint(str(resume))
        trainer.state = trainer.state.load_from_json(str(resume / checkpoint.STATE))
        return
    # On CUDA autograd's own thread competes with the layers' Python code for the interpreter: on
    # an H200 a launch-bound step took a sixth longer.
    with _reporters_closed(trainer), torch.autograd.set_multithreading_enabled(False):
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if callable(switch := getattr(trainer.optimizer, "eval", None)):
        switch()
    if signals.requested:
        trainer._save_checkpoint(trainer.module)
        raise Interrupted(
            f"{signals.requested}: stopped after the last step, {trainer.state.global_step}; "
            "a checkpoint was saved."
        )


@contextlib.contextmanager
def _reporters_closed(trainer: ItemMeanTrainer) -> Iterator[None]:
    """Let loggers flush and progress bars close when training fails."""
    try:
        yield
    except BaseException:
        trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
        raise


def _keep_best(trainer: ItemMeanTrainer, staging: Path) -> None:
    best, step = staging / checkpoint.BEST, trainer.ledger.best_step
    if step is not None and step != trainer.state.global_step:
        checkpoint.load_trained(trainer.module, best)
        logger.info("Kept the weights of step %d, the best on validation.", step)
    best.unlink(missing_ok=True)


def _result(trainer: ItemMeanTrainer, regularizer: Regularizer | None) -> TrainResult:
    ledger, state = trainer.ledger, trainer.state
    return TrainResult(
        steps=state.global_step,
        epochs=float(state.epoch or 0.0),
        loss=ledger.mean_loss,
        metrics=dict(ledger.best_metrics),
        best_step=ledger.best_step,
        best_epoch=ledger.best_epoch,
        stopped_early=ledger.stopped_early,
        history=tuple(entry for entry in state.log_history if "train_loss" not in entry),
        seconds=ledger.seconds,
        training_seconds=ledger.training_seconds,
        tokens=ledger.tokens,
        tokens_per_second=ledger.tokens / max(ledger.training_seconds, 1e-9),
        gradient_bytes=gradient_bytes(trainer.module),
        optimizer_bytes=optimizer_bytes(trainer.optimizer) if trainer.optimizer else 0,
        regularization=None if regularizer is None else regularizer.report(),
    )
