"""A finished run: evaluated, used for predictions, exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.errors import CheckFailed, ConfigError, DataError
from peftlab.pipeline import preparation
from peftlab.pipeline.fusing import by_choices_of
from peftlab.pipeline.measures import SPLITS, evaluation_batch, with_interval
from peftlab.pipeline.opened import OpenedRun

if TYPE_CHECKING:
    from peftlab.export.report import MergeReport


@dataclass(frozen=True)
class Run(OpenedRun):
    """A finished run that evaluates, predicts and exports."""

    def export(self, out: str | Path, **settings: Any) -> MergeReport:
        """Write the merged model to the folder `out`; see `pipeline.export.runs.export`."""
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
        ready = self.loaded
        checked = replace(checked, task=checked.task.attach(ready.tokenizer, None))
        if checked.task.state() != self.task.as_from_splits().state():
            raise CheckFailed(
                f"{self.config.data.source} has changed since the run was trained: the run has "
                f"{self.task.state()}, the data {checked.task.state()}."
            )
        length = int(self.record["max_length"])
        _, encoded = preparation.encode(checked, ready.tokenizer, length, (split,))
        with by_choices_of(self.folder):
            evaluation = evaluate(
                ready.model,
                self.task,
                encoded[split].rows,
                self.task.collator(ready.tokenizer),
                batch_size=evaluation_batch(self.config),
                compute_dtype=ready.compute,
            )
        return with_interval(self.task, evaluation, self.config)

    def predict(
        self, rows: Sequence[str | Mapping[str, Any]], **generation: Any
    ) -> list[dict[str, Any]]:
        """Predictions for texts, or for rows with the task's columns (`text`, `text_pair`,
        `prompt`, `messages`).

        `generation` overrides single settings of `eval.generation` (`max_new_tokens`, ...).
        Raises `DataError` for an empty text or a row without the columns that the task reads.
        """
        if not rows:
            return []
        inputs = [self._input_row(row, number) for number, row in enumerate(rows, start=1)]
        settings = self.config.eval.generation.model_dump() | generation
        ready = self.loaded
        import torch

        device = next(ready.model.parameters()).device
        with (
            by_choices_of(self.folder),
            torch.autocast(device.type, torch.bfloat16, enabled=ready.compute == torch.bfloat16),
        ):
            return self.task.predict(
                ready.model,
                ready.tokenizer,
                inputs,
                max_length=int(self.record["max_length"]),
                batch_size=evaluation_batch(self.config),
                generation=settings if "eval.generation" in self.config.task.reads else None,
            )

    def _input_row(self, row: str | Mapping[str, Any], number: int) -> dict[str, Any]:
        """A text, or a row with the data's columns or the format's roles, by the task's roles."""
        from peftlab.data.formats import FORMATS

        given = self.task.input_row(row) if isinstance(row, str) else dict(row)
        recorded = self.record["columns"]
        # The columns of the training data come first: another one may have a role's name.
        columns = {
            role: name for role, name in recorded.items() if isinstance(name, str) and name in given
        }
        # Runs of versions without named formats have text in every column.
        form = FORMATS.get(self.record.get("data_format", ""))
        roles = recorded if form is None else form.roles
        columns |= {role: role for role in roles if role in given and role not in columns}
        try:
            if form is not None:
                # Training data may have had no column for a role that need not be there.
                found = form.find(tuple(given), columns, "the row")
                columns |= {role: name for role, name in found.items() if not form.roles[role]}
            by_role = given | {role: given[name] for role, name in columns.items()}
            return by_role if form is None else form.input_row(by_role)
        except DataError as error:
            raise DataError(f"row {number} to predict: {error}") from None


def open_run(folder: str | Path) -> Run:
    """Open a run's folder. Raises `CheckFailed` where it is not a finished run."""
    return Run.open(folder)
