"""What a run would do, without training: data, targets, steps; and a preview of its rows."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from peftlab import run_folder
from peftlab.config import resolved_mapping
from peftlab.data.bad_rows import counts_of
from peftlab.pipeline import amounts, preparation

if TYPE_CHECKING:
    from peftlab.config import RunConfig
    from peftlab.fusion import FusionReport
    from peftlab.methods.coverage import Coverage
    from peftlab.tasks.task import TokenStatistics


@dataclass(frozen=True, slots=True)
class Plan:
    """A validated run. Parameter counts are numbers of scalars, lengths are tokens."""

    config: dict[str, Any]
    output: str
    data: dict[str, TokenStatistics]
    dropped: dict[str, dict[str, int]]
    labels: dict[str, int]
    understood: str
    coverage: Coverage
    trained_parameters: int
    total_parameters: int
    max_length: int
    micro_batch_size: int
    accumulation_steps: int
    steps_per_epoch: int
    steps: int
    learning_rate: float
    learning_rates: tuple[float, ...]
    dtypes: dict[str, str]
    fusion: FusionReport | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The plan in JSON values."""
        return {
            "config": self.config,
            "output": self.output,
            "data": {split: asdict(statistics) for split, statistics in self.data.items()},
            "dropped": self.dropped,
            "labels": self.labels,
            "understood": self.understood,
            "coverage": self.coverage.to_json(),
            "trained_parameters": self.trained_parameters,
            "total_parameters": self.total_parameters,
            "max_length": self.max_length,
            "micro_batch_size": self.micro_batch_size,
            "accumulation_steps": self.accumulation_steps,
            "steps_per_epoch": self.steps_per_epoch,
            "steps": self.steps,
            "learning_rate": self.learning_rate,
            "other_learning_rates": list(self.learning_rates),
            "dtypes": self.dtypes,
            "fusion": None if self.fusion is None else self.fusion.to_json(),
            "notes": list(self.notes),
        }


def plan(config: RunConfig) -> Plan:
    """Validate a run against its data and its model's shapes; no weight is read.

    Raises what `train` would raise before its first step.
    """
    final = preparation.output_folder(config)
    run_folder.check_free(final, overwrite=config.output.overwrite, resume="auto")
    checked = preparation.check(config)
    preparation.check_settings(checked)
    prepared = preparation.prepare(checked, weights=False)
    encoded = prepared.encoded
    micro = amounts.micro_batch(config)
    per_epoch = math.ceil(len(encoded["train"].rows) / config.train.global_batch_size)
    steps = amounts.optimizer_steps(config.train, len(encoded["train"].rows))
    model = prepared.applied.model
    parameters = dict(model.named_parameters())
    penalties = () if prepared.regularizer is None else (prepared.regularizer.describe(),)
    return Plan(
        config=resolved_mapping(config),
        output=str(final),
        data=preparation.statistics_of(encoded),
        understood=checked.splits.understood,
        dropped=counts_of(prepared.checked.splits.dropped),
        labels=label_counts(prepared.checked),
        coverage=prepared.applied.coverage,
        trained_parameters=sum(parameters[name].numel() for name in prepared.applied.trainable),
        total_parameters=sum(p.numel() for p in parameters.values()),
        max_length=prepared.max_length,
        micro_batch_size=micro,
        accumulation_steps=config.train.global_batch_size // micro,
        steps_per_epoch=per_epoch,
        steps=steps,
        learning_rate=prepared.learning_rate,
        learning_rates=tuple(sorted(set(prepared.learning_rates.values()))),
        dtypes={
            "at_rest": str(prepared.loaded.at_rest).removeprefix("torch."),
            "compute": str(prepared.loaded.compute).removeprefix("torch."),
        },
        fusion=prepared.fusion,
        notes=(*prepared.loaded.notes, *prepared.applied.notes, *penalties),
    )


def label_counts(checked: preparation.Checked) -> dict[str, int]:
    """Rows per label in the training split; empty for a task without labels."""
    from peftlab.data.labels.names import label_histogram

    names = checked.splits.label_names
    return {} if names is None else label_histogram(checked.splits.train, names)


def preview(config: RunConfig, rows: int = 3) -> dict[str, Any]:
    """Decoded samples as the model will see them, with their targets, and length statistics.

    Each sample is the task's `preview`: `text` (decoded ids, special tokens included), `tokens`
    (their number), and its labels or `trained`, the pieces that the loss counts.
    """
    from peftlab.model.loading import load_tokenizer, read_checkpoint_config

    checked = preparation.check(config)
    name = config.model.name
    settings: dict[str, Any] = {
        "revision": config.model.revision,
        "trust_remote_code": config.model.trust_remote_code,
    }
    tokenizer = load_tokenizer(name, **settings)
    checked = replace(checked, task=checked.task.attach(tokenizer, None))
    limit = read_checkpoint_config(name, **settings).max_length_limit
    max_length = amounts.chosen_length(config, limit)
    checked, encoded = preparation.encode(
        checked, tokenizer, max_length, ("train", "validation", "test")
    )
    shown = encoded["train"].rows.select(range(min(rows, len(encoded["train"].rows))))
    samples = [checked.task.preview(row, tokenizer) for row in shown]
    return {
        "source": config.data.source,
        "max_length": max_length,
        "splits": {
            split: asdict(lengths) for split, lengths in preparation.statistics_of(encoded).items()
        },
        "dropped": counts_of(checked.splits.dropped),
        "labels": label_counts(checked),
        "understood": checked.splits.understood,
        "samples": samples,
    }
