"""From `bench.methods` to one configuration for every row and seed."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from peftlab.config.loading.bench_rows import parse_method, row_training
from peftlab.config.methods.options import MethodOptions
from peftlab.config.schema import BenchRow, RunConfig, TrainConfig
from peftlab.errors import ConfigError

logger = logging.getLogger("peftlab")


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """One row: its name and its configuration, one a seed."""

    label: str
    method: MethodOptions
    configs: tuple[RunConfig, ...]


def plan_rows(config: RunConfig, folder: Path) -> tuple[PlannedRow, ...]:
    """Every row of the bench, its runs under `folder`/runs. Raises `ConfigError`."""
    entries = config.bench.methods
    rows = tuple(_plan_row(entry, config, folder) for entry in entries)
    _refuse_twins([row.label for row in rows])
    if config.train.learning_rate != "auto" and len({row.method.name for row in rows}) > 1:
        logger.warning(
            "train.learning_rate is %s for every row, but each method has a best rate of its own; "
            "leave it at auto, or set train.learning_rate in the rows of bench.methods.",
            config.train.learning_rate,
        )
    return rows


def _plan_row(entry: str | BenchRow, config: RunConfig, folder: Path) -> PlannedRow:
    if isinstance(entry, str):
        label, method, train = entry.strip(), parse_method(entry, config.method), config.train
    else:
        label, method = entry.label or entry.method.name, entry.method
        train = _row_training(label, entry.train, config.train)
    return PlannedRow(
        label,
        method,
        tuple(
            config.model_copy(
                update={
                    "method": method,
                    "train": train.model_copy(update={"seed": train.seed + i}),
                    "output": config.output.model_copy(
                        update={
                            "dir": str(folder / "runs" / run_name(label, i, config.bench.seeds)),
                            "overwrite": True,
                        }
                    ),
                }
            )
            for i in range(config.bench.seeds)
        ),
    )


def _row_training(label: str, own: dict[str, object], base: TrainConfig) -> TrainConfig:
    """The `train` section with a row's own keys. Raises `ConfigError`."""
    try:
        return row_training(base, own)
    except ValidationError as invalid:
        problem = invalid.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise ConfigError(
            f"bench.methods, row {label!r}: train.{key} is {problem['input']!r}: {problem['msg']}."
        ) from None


def _refuse_twins(labels: Sequence[str]) -> None:
    names = [run_name(label, 0, 1) for label in labels]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ConfigError(
                f"bench.methods has two rows named {labels[i]!r}; give each a label of its own."
            )


def run_name(label: str, index: int, seeds: int) -> str:
    """The name of a run's folder: the label without what a file system dislikes."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip("-.") or "row"
    return f"{name}-{index + 1}" if seeds > 1 else name


def describe_settings(config: RunConfig, learning_rate: float | None) -> str:
    """What a reader must know to judge a row: the method's settings, the rate, how long."""
    train = config.train
    parts = config.method.describe()
    rate = learning_rate if learning_rate is not None else train.learning_rate
    parts.append(f"learning rate {rate:.2g}" if isinstance(rate, float) else "learning rate auto")
    if train.max_steps is not None:
        parts.append(f"{train.max_steps} steps, batch size {train.global_batch_size}")
    else:
        epochs = f"{train.num_train_epochs:g} epoch" + "s" * (train.num_train_epochs != 1)
        parts.append(f"{epochs}, batch size {train.global_batch_size}")
    return ", ".join(parts)
