"""From `bench.methods` to one configuration for every row and seed."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from peftlab.config.schema import (
    BenchRow,
    FullMethod,
    HeadMethod,
    LastNMethod,
    LoraMethod,
    MethodConfig,
    QLoraMethod,
    RunConfig,
    TrainConfig,
)
from peftlab.errors import ConfigError

logger = logging.getLogger("peftlab")

FORMS = "head, last_n or last_n:N, lora or lora:R, qlora8 or qlora8:R, full"


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """One row: its name and its configuration, one a seed."""

    label: str
    method: MethodConfig
    configs: tuple[RunConfig, ...]


def parse_method(text: str, base: MethodConfig) -> MethodConfig:
    """The method that a short form names, with what `method` in the configuration says about it.

    Where the short form names the configured method it keeps all of its settings; the adapters of
    `lora` and `qlora` also take each other's, so that the two rows differ in the base alone.
    Raises `ConfigError`.
    """
    name, _, number = text.strip().partition(":")
    amount: int | None = None
    if number:
        if not number.isdecimal() or int(number) < 1:
            raise ConfigError(
                f"bench.methods has {text!r}: {number!r} is no positive number; forms are {FORMS}."
            )
        amount = int(number)
    if amount is not None and name in {"head", "full"}:
        raise ConfigError(f"bench.methods has {text!r}: {name} takes no number; forms are {FORMS}.")
    try:
        if name == "head":
            return base if isinstance(base, HeadMethod) else HeadMethod(name="head")
        if name == "full":
            return FullMethod(name="full")
        if name == "last_n":
            configured = base.n if isinstance(base, LastNMethod) else 2
            return LastNMethod(name="last_n", n=amount or configured)
        if name in {"lora", "qlora", "qlora8"}:
            return _adapter("lora" if name == "lora" else "qlora", amount, base)
    except ValidationError as invalid:
        problem = invalid.errors()[0]
        raise ConfigError(f"bench.methods has {text!r}: {problem['msg']}.") from None
    raise ConfigError(f"bench.methods has {text!r}, which names no method; forms are {FORMS}.")


def _adapter(name: str, rank: int | None, base: MethodConfig) -> MethodConfig:
    """A `lora` or `qlora` method; another rank keeps the scaling, alpha / r."""
    kind = LoraMethod if name == "lora" else QLoraMethod
    settings: dict[str, object] = {}
    if isinstance(base, LoraMethod | QLoraMethod):
        shared = base.model_dump(exclude_unset=True)
        settings = {key: shared[key] for key in shared if key in kind.model_fields}
    settings["name"] = name
    method = kind.model_validate(settings)
    if rank is None:
        return method
    return kind.model_validate({**settings, "r": rank, "alpha": method.alpha * rank / method.r})


def plan_rows(config: RunConfig, folder: Path) -> tuple[PlannedRow, ...]:
    """Every row of the bench, its runs under `folder`/runs. Raises `ConfigError`."""
    asked = config.bench.methods
    rows = tuple(_plan_row(entry, config, folder) for entry in asked)
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
        settings = TrainConfig.model_validate(own).model_dump(exclude_unset=True)
        return TrainConfig.model_validate({**base.model_dump(), **settings})
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
    method, train = config.method, config.train
    parts: list[str] = []
    match method:
        case HeadMethod():
            parts.append(f"{method.pooling} pooling")
        case LastNMethod():
            parts.append(f"last {method.n} block{'s' if method.n > 1 else ''}")
        case LoraMethod() | QLoraMethod():
            parts.append(f"r={method.r}, alpha={method.alpha:g}, dropout {method.dropout:g}")
            if method.target_modules != "auto":
                targets = method.target_modules
                parts.append(targets if isinstance(targets, str) else " ".join(targets))
            if isinstance(method, QLoraMethod):
                parts.append(f"int{method.bits} base")
            elif method.use_dora:
                parts.append("DoRA")
            if method.use_rslora:
                parts.append("rsLoRA")
        case FullMethod():
            parts.append("all weights")
    rate = learning_rate if learning_rate is not None else train.learning_rate
    parts.append(f"rate {rate:.2g}" if isinstance(rate, float) else "rate auto")
    if train.max_steps is not None:
        parts.append(f"{train.max_steps} steps of {train.global_batch_size}")
    else:
        parts.append(f"{train.num_train_epochs:g} epochs of {train.global_batch_size}")
    return ", ".join(parts)
