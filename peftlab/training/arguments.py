"""peftlab's settings as Trainer's arguments."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainingArguments

from peftlab.config.schema import RegularizationConfig, TrainConfig
from peftlab.errors import ConfigError
from peftlab.training.trainer_names import schedule_arguments

# Settings that may change when a run is resumed: the weights do not depend on them.
_FREE = {"micro_batch_size", "logging_steps", "save_every", "allocator", "gradient_checkpointing"}


def check_sizes(global_batch_size: int, micro_batch_size: int, dtype: torch.dtype) -> None:
    """Raise `ConfigError` where the batch sizes do not divide, or the dtype cannot train."""
    if global_batch_size % micro_batch_size:
        raise ConfigError(
            f"train.micro_batch_size is {micro_batch_size}, which does not divide "
            f"train.global_batch_size, {global_batch_size}."
        )
    if dtype not in (torch.float32, torch.bfloat16):
        raise ConfigError(
            f"Training in {str(dtype).removeprefix('torch.')} activations is not supported: "
            "gradients underflow. Set model.dtype to auto, bfloat16 or float32."
        )


def recorded_settings(
    settings: TrainConfig,
    *,
    learning_rate: float,
    rows: int,
    best_metric: str,
    greater_is_better: bool,
    regularization: RegularizationConfig | None = None,
    learning_rates: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The settings that a checkpoint records, to compare on resume; JSON values.

    The best metric is among them: the best value so far has no meaning for another metric.
    """
    kept = settings.model_dump(mode="json", exclude=_FREE) | {"learning_rate": learning_rate}
    named = {f"train.{key}": value for key, value in kept.items()} | {
        "training rows": rows,
        "eval.best": best_metric,
        "the better value of eval.best": "greater" if greater_is_better else "smaller",
    }
    if regularization is not None:
        penalties = regularization.model_dump(mode="json")
        named |= {f"regularization.{key}": value for key, value in penalties.items()}
    if learning_rates:
        named["other learning rates"] = sorted(set(learning_rates.values()))
    restored: dict[str, Any] = json.loads(json.dumps(named))
    return restored


def training_arguments(
    settings: TrainConfig,
    *,
    learning_rate: float,
    micro_batch_size: int,
    staging: Path,
    steps: int,
    evaluate_every: Literal["epoch", "never"] | int,
    best_metric: str,
    greater_is_better: bool,
    report_to: Sequence[str],
) -> TrainingArguments:
    """Trainer's arguments for `steps` optimizer steps in total, with all files in `staging`."""
    evaluation, evaluation_steps = _strategy(evaluate_every)
    saving, saving_steps = _strategy(settings.save_every)
    arguments = TrainingArguments(
        output_dir=str(staging),
        per_device_train_batch_size=micro_batch_size,
        gradient_accumulation_steps=settings.global_batch_size // micro_batch_size,
        num_train_epochs=settings.num_train_epochs,
        max_steps=settings.max_steps or -1,
        learning_rate=learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type,
        lr_scheduler_kwargs=dict(
            schedule_arguments(
                settings.lr_scheduler_type, steps=steps, greater_is_better=greater_is_better
            )
        ),
        warmup_steps=settings.warmup_steps,
        optim=settings.optim,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.adam_beta1,
        adam_beta2=settings.adam_beta2,
        adam_epsilon=settings.adam_epsilon,
        max_grad_norm=settings.max_grad_norm,
        logging_steps=settings.logging_steps,
        # The filter replaces a loss that is not finite; here such a loss is an error.
        logging_nan_inf_filter=False,
        eval_strategy=evaluation,
        eval_steps=evaluation_steps,
        save_strategy=saving,
        save_steps=saving_steps or 500,
        metric_for_best_model=best_metric,
        greater_is_better=greater_is_better,
        seed=settings.seed,
        report_to=list(report_to),
        disable_tqdm=True,
        log_level="error",
        # Rows have columns that tasks count by, beside the arguments of the model's forward.
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    # accelerate launch sets mixed precision in the environment; ours is `compute_dtype`.
    arguments.mixed_precision = "no"
    # One process, one device: DataParallel would split micro-batches after items are counted.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _strategy(every: Literal["epoch", "never"] | int) -> tuple[str, int | None]:
    if isinstance(every, int):
        return "steps", every
    return ("epoch" if every == "epoch" else "no"), None
