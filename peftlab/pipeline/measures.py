"""The metrics that a run reports, with the interval of the best one, and the splits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from peftlab.errors import ConfigError

if TYPE_CHECKING:
    from peftlab.config import RunConfig
    from peftlab.evaluation import Evaluation
    from peftlab.tasks.task import Task

SPLITS = ("train", "validation", "test")


def evaluation_batch(config: RunConfig) -> int:
    """Rows a forward pass without gradient."""
    return 32 if config.eval.batch_size == "auto" else config.eval.batch_size


def best_metric(config: RunConfig, task: Task) -> str:
    """The metric that selects the best weights, with auto resolved."""
    return task.best_metric if config.eval.best == "auto" else config.eval.best


def reported(task: Task, metrics: Mapping[str, float], config: RunConfig) -> dict[str, float]:
    """The metrics that `eval.metrics` names, always with the loss and the best metric.

    Raises `ConfigError` naming a metric that the task does not report.
    """
    if config.eval.metrics == "auto":
        return dict(metrics)
    for name in config.eval.metrics:
        if name not in metrics:
            raise ConfigError(
                f"eval.metrics names {name!r}; {task.name} reports {', '.join(metrics)}."
            )
    kept = {*config.eval.metrics, "loss", best_metric(config, task)}
    return {name: value for name, value in metrics.items() if name in kept}


def with_interval(task: Task, evaluation: Evaluation, config: RunConfig) -> dict[str, Any]:
    """Reported metrics and, under `interval`, the best metric's 95 % interval."""
    name = best_metric(config, task)
    interval = task.interval(evaluation.scores, name)
    return {**reported(task, evaluation.metrics, config), "interval": {name: list(interval)}}
