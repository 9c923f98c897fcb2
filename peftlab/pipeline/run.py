"""A finished run: opened from its folder, evaluated, asked for predictions."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab import run_folder
from peftlab.config import load_config
from peftlab.errors import CheckFailed, ConfigError, DataError
from peftlab.pipeline import preparation
from peftlab.pipeline.fusing import by_choices_of, fuse_for, replay_verdicts

if TYPE_CHECKING:
    import torch
    from torch import nn

    from peftlab.config import RunConfig
    from peftlab.export.report import MergeReport
    from peftlab.tasks.task import Task

logger = logging.getLogger("peftlab")

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Answering:
    """A trained model ready to answer, with what its answers depend on."""

    model: nn.Module
    tokenizer: Any
    compute: torch.dtype


@dataclass(frozen=True)
class Run:
    """A run's folder, with its configuration and metrics; the model is loaded when first needed."""

    folder: Path
    config: RunConfig
    record: Mapping[str, Any]
    metrics: Mapping[str, Any]
    trained: Answering | None = field(default=None, repr=False)

    @cached_property
    def task(self) -> Task:
        """The task as training recorded it: label names and the like."""
        from peftlab.tasks.registry import task_class

        task = task_class(self.config.task.name).from_state(self.record["task"]["state"])
        return preparation.with_settings(task, self.config)

    @cached_property
    def answering(self) -> Answering:
        """The base with the trained part on it. Raises `CheckFailed` where either is missing."""
        if self.trained is not None:
            return self.trained
        from peftlab.methods.trained_part import load_trained
        from peftlab.model.loading import load_model
        from peftlab.model.precision import training_device

        base = self.record["model"]
        compared = self._check_base()
        arguments = preparation.base_arguments(self.config) | {"revision": base["revision"]}
        loaded = load_model(base["name"], self.task.head(), **arguments)
        if not compared:  # The base has been fetched meanwhile.
            self._check_base()
        self.task.attach(loaded.tokenizer, loaded.model)
        applied = load_trained(
            loaded.model,
            self.config.method,
            self.folder,
            task=self.config.task.name,
            tokens=self.task.trained_tokens,
        )
        fusion = fuse_for(applied.model, loaded, self.config)
        replay_verdicts(self.folder, fusion)
        model = applied.model.to(training_device()).eval()
        self.check_tokenizers(loaded.tokenizer)
        with by_choices_of(self.folder):
            self.check_logits(model, loaded.compute)
        return Answering(model, loaded.tokenizer, loaded.compute)

    def check_tokenizers(self, of_base: Any = None) -> None:
        """Raise `CheckFailed` where the run's tokenizer, or its base's, reads otherwise by now."""
        from peftlab.pipeline.golden import check_tokenizer

        golden = self.record.get("golden")
        if golden is None:  # A run from before there were golden examples.
            return
        length = int(self.record["max_length"])
        found = {f"the tokenizer in {self.folder / 'tokenizer'}": self._own_tokenizer}
        if of_base is not None:
            found[f"the tokenizer of {self.record['model']['name']}"] = of_base
        for what, tokenizer in found.items():
            check_tokenizer(golden, self.task, tokenizer, max_length=length, what=what)

    def check_logits(self, model: nn.Module, compute: torch.dtype | None = None) -> None:
        """Raise `CheckFailed` where a model does not answer as the trained one did.

        `compute`: the dtype of its arithmetic; fp32 by default.
        """
        import torch

        from peftlab.pipeline.golden import check_logits

        golden = self.record.get("golden")
        if golden is None:
            return
        check_logits(
            golden, self.task, model, self._own_tokenizer,
            compute=compute or torch.float32, what=f"the model of {self.folder}",
        )  # fmt: skip

    @cached_property
    def _own_tokenizer(self) -> Any:
        from peftlab.model.loading import load_tokenizer

        return load_tokenizer(
            str(self.folder / "tokenizer"), trust_remote_code=self.config.model.trust_remote_code
        )

    def _check_base(self) -> bool:
        from peftlab.methods.trained_part import ADAPTER, TRAINED
        from peftlab.pipeline.fingerprints import check_base

        base = self.record["model"]
        adapter = self.folder / ADAPTER
        return check_base(
            adapter if adapter.is_dir() else self.folder / TRAINED,
            base["name"],
            base["revision"],
            trust_remote_code=self.config.model.trust_remote_code,
        )

    def export(self, out: str | Path, **settings: Any) -> MergeReport:
        """Write the merged model to the folder `out`; see `pipeline.exporting.export`."""
        from peftlab.pipeline.export.runs import export

        return export(self.folder, out, **settings)

    def evaluate(self, split: str = "test") -> dict[str, Any]:
        """Metrics on one split of the run's data, with the 95 % interval of the best metric.

        Raises `ConfigError` for another split's name, `DataError` where the data has no such split.
        """
        from peftlab.evaluation import evaluate

        if split not in SPLITS:
            raise ConfigError(f"--split is {split!r}; it can be {', '.join(SPLITS)}.")
        checked = preparation.check(self.config)
        checked.splits.get(split)
        ready = self.answering
        checked = replace(checked, task=checked.task.attach(ready.tokenizer, None))
        if checked.task.state() != self.task.as_from_splits().state():
            raise CheckFailed(
                f"{self.config.data.source} has changed since the run was trained: the run knows "
                f"{self.task.state()}, the data says {checked.task.state()}."
            )
        encoded = preparation.encode(
            checked, ready.tokenizer, int(self.record["max_length"]), (split,)
        )[split]
        with by_choices_of(self.folder):
            found = evaluate(
                ready.model,
                self.task,
                encoded.rows,
                self.task.collator(ready.tokenizer),
                batch_size=evaluation_batch(self.config),
                compute_dtype=ready.compute,
            )
        return with_interval(self.task, found, self.config)

    def predict(
        self, rows: Sequence[str | Mapping[str, Any]], **generation: Any
    ) -> list[dict[str, Any]]:
        """Answers to texts, or to rows with the task's columns (`text`, `text_pair`,
        `prompt`, `messages`).

        `generation` overrides single settings of `eval.generation` (`max_new_tokens`, ...).
        Raises `DataError` for an empty text or a row without the columns that the task reads.
        """
        if not rows:
            return []
        asked = [self._asked(row, number) for number, row in enumerate(rows, start=1)]
        settings = self.config.eval.generation.model_dump() | generation
        ready = self.answering
        import torch

        device = next(ready.model.parameters()).device
        with (
            by_choices_of(self.folder),
            torch.autocast(device.type, torch.bfloat16, enabled=ready.compute == torch.bfloat16),
        ):
            return self.task.predict(
                ready.model,
                ready.tokenizer,
                asked,
                max_length=int(self.record["max_length"]),
                batch_size=evaluation_batch(self.config),
                generation=settings if "eval.generation" in self.config.task.reads else None,
            )

    def _asked(self, row: str | Mapping[str, Any], number: int) -> dict[str, Any]:
        """A text, or a row with the data's columns or the format's roles, as the task reads it."""
        from peftlab.data.formats import FORMATS

        by_role = self.task.input_row(row) if isinstance(row, str) else dict(row)
        by_role |= {
            role: by_role[name]
            for role, name in self.record["columns"].items()
            if role not in by_role and name in by_role
        }
        # Runs from before formats had names have text in every column.
        form = FORMATS.get(self.record.get("data_format", ""))
        try:
            return by_role if form is None else form.asked(by_role)
        except DataError as error:
            raise DataError(f"row {number} to predict: {error}") from None


def evaluation_batch(config: RunConfig) -> int:
    """Rows a forward pass without gradient."""
    return 32 if config.eval.batch_size == "auto" else config.eval.batch_size


def best_metric(config: RunConfig, task: Task) -> str:
    """The metric that chooses, with auto spelled out."""
    return task.best_metric if config.eval.best == "auto" else config.eval.best


def reported(task: Task, metrics: Mapping[str, float], config: RunConfig) -> dict[str, float]:
    """The metrics asked for in `eval.metrics`, and always the loss and the one that chooses.

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


def with_interval(task: Task, found: Any, config: RunConfig) -> dict[str, Any]:
    """Reported metrics and, under `interval`, the best metric's 95 % interval."""
    name = best_metric(config, task)
    interval = task.interval(found.scores, name)
    return {**reported(task, found.metrics, config), "interval": {name: list(interval)}}


def open_run(folder: str | Path) -> Run:
    """Open a run's folder. Raises `CheckFailed` where it is not a finished run."""
    path = Path(folder)
    if not path.is_dir():
        raise CheckFailed(f"{path} is not a folder; give the folder that `peftlab train` wrote.")
    if not run_folder.is_run(path):
        unfinished = run_folder.staging_folder(path)
        hint = (
            f" {unfinished} is unfinished: train with --resume auto." if unfinished.is_dir() else ""
        )
        raise CheckFailed(f"{path} is not a finished run: it has no {run_folder.RECORD}.{hint}")
    record = run_folder.read_json(path / run_folder.RECORD)
    config = load_config(path / run_folder.CONFIG, ()).config
    return Run(path, config, record, run_folder.read_json(path / run_folder.METRICS))
