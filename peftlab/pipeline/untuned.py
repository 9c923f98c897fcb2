"""The baseline of every bench: what a trivial predictor, or the base model, reaches."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from peftlab.errors import ConfigError
from peftlab.pipeline import amounts, preparation
from peftlab.pipeline.measures import evaluation_batch, with_interval

if TYPE_CHECKING:
    from peftlab.config import RunConfig


def evaluate_untuned(config: RunConfig) -> dict[str, Any]:
    """Metrics before any training, under the name of their split, with `what` was evaluated.

    A task with a new head has nothing to evaluate: its baseline is the majority class. Where the
    pretrained head performs the task (language models), the base model is evaluated.
    """
    checked = preparation.check(config)
    split = "test" if checked.splits.test is not None else "validation"
    known = checked.task.untuned(checked.splits)
    from peftlab.evaluation import Evaluation, evaluate

    if known is not None:
        evaluation = Evaluation(checked.task.metrics(known), known)
        return {
            "what": checked.task.untuned_name,
            split: with_interval(checked.task, evaluation, config),
        }
    if getattr(checked.splits, split) is None:
        raise ConfigError(f"{config.data.source} has neither a test nor a validation split.")
    from peftlab.model.loading import load_model
    from peftlab.model.precision import training_device
    from peftlab.pipeline.fusing import fuse_for

    loaded = load_model(
        config.model.name, checked.task.head(), **preparation.base_arguments(config)
    )
    checked = replace(checked, task=checked.task.attach(loaded.tokenizer, loaded.model))
    fuse_for(loaded.model, loaded, config)
    model = loaded.model.to(training_device())
    max_length = amounts.chosen_length(config, loaded.max_length_limit)
    _, encoded = preparation.encode(checked, loaded.tokenizer, max_length, (split,))
    evaluation = evaluate(
        model,
        checked.task,
        encoded[split].rows,
        checked.task.collator(loaded.tokenizer),
        batch_size=evaluation_batch(config),
        compute_dtype=loaded.compute,
    )
    return {"what": "base model", split: with_interval(checked.task, evaluation, config)}
