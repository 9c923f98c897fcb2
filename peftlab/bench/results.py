"""The results of a bench: one row a method, one run a seed; and how it is read from run folders."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

LOWER_IS_BETTER = frozenset({"loss", "perplexity"})
MEMORY_PARTS = ("weights", "gradients", "optimizer", "activations")


@dataclass(frozen=True, slots=True)
class SeedRun:
    """One run of one row. Either `error` says why it failed, or the rest is set.

    Memory and the artifact are in bytes, times in seconds; `quality` holds every metric of the
    split that was scored, `validation` those that rows are chosen by, `interval` the 95 % interval
    of the metrics that have one, and `curve` the training loss as (step, loss).
    """

    seed: int
    folder: str | None = None
    error: str | None = None
    kind: str | None = None
    split: str = "test"
    quality: Mapping[str, float] = field(default_factory=dict)
    interval: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    validation: Mapping[str, float] = field(default_factory=dict)
    trained_parameters: int | None = None
    total_parameters: int | None = None
    peak_memory: Mapping[str, int] = field(default_factory=dict)
    tokens_per_second: float | None = None
    seconds: float | None = None
    artifact_bytes: int | None = None
    learning_rate: float | None = None
    curve: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean over seeds, and their standard deviation where there are several."""

    mean: float
    sd: float | None


@dataclass(frozen=True, slots=True)
class Row:
    """A method's runs, one a seed. `method` is `untuned` for the row without training."""

    label: str
    method: str
    settings: str
    config: Mapping[str, Any]
    runs: tuple[SeedRun, ...]

    @property
    def good(self) -> tuple[SeedRun, ...]:
        """The runs that finished."""
        return tuple(run for run in self.runs if run.error is None)

    @property
    def failure(self) -> str | None:
        """Why the row is empty, or None where at least one seed finished."""
        return None if self.good else (self.runs[0].error if self.runs else "was not run")

    def spread(self, value: Callable[[SeedRun], float | None]) -> Spread | None:
        """Mean and standard deviation of one quantity over the seeds that finished."""
        values = [v for run in self.good if (v := value(run)) is not None]
        if not values:
            return None
        return Spread(
            statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
        )

    def metric(self, name: str) -> Spread | None:
        """Mean and spread of one quality metric."""
        return self.spread(lambda run: run.quality.get(name))

    def interval(self, name: str) -> tuple[float, float] | None:
        """The 95 % interval of a metric over test rows; of several seeds, the mean of theirs."""
        values = [run.interval[name] for run in self.good if name in run.interval]
        if not values:
            return None
        return statistics.fmean(i[0] for i in values), statistics.fmean(i[1] for i in values)

    def trained_share(self) -> float | None:
        """Trained parameters as a fraction of all."""
        for run in self.good:
            if run.trained_parameters is not None and run.total_parameters:
                return run.trained_parameters / run.total_parameters
        return None

    def memory(self, part: str = "total") -> Spread | None:
        """Peak memory, bytes: the total or one of `MEMORY_PARTS` at that moment."""
        return self.spread(lambda run: run.peak_memory.get(part))


@dataclass(frozen=True, slots=True)
class BenchResult:
    """All rows and what they were measured on. `complete` is False where the bench was stopped.

    `runs` names the run folders that are the bench's own, also those not begun yet.
    """

    model: str
    task: str
    data: str
    metric: str
    split: str
    seeds: int
    seconds: float
    complete: bool
    environment: Mapping[str, Any]
    rows: tuple[Row, ...]
    runs: tuple[str, ...] = ()

    @property
    def greater_is_better(self) -> bool:
        """Whether more of `metric` is better."""
        return self.metric not in LOWER_IS_BETTER

    @property
    def trained(self) -> tuple[Row, ...]:
        """Rows of methods that finished, without the untuned row."""
        return tuple(r for r in self.rows if r.method != "untuned" and r.failure is None)

    @property
    def scored(self) -> tuple[Row, ...]:
        """Finished rows with a quality to compare."""
        return tuple(row for row in self.trained if any(run.quality for run in row.good))

    @property
    def chosen_on(self) -> str:
        """The split that the best row is chosen on: validation, or where a row lacks it, `split`.

        Test is reported, and chooses nothing as long as there is validation.
        """
        lacking = [r for r in self.scored if any(self.metric not in s.validation for s in r.good)]
        return self.split if lacking else "validation"

    def best(self) -> Row | None:
        """The finished row of the best mean metric on the split that chooses."""
        validated = self.chosen_on == "validation"
        rows = [
            (spread.mean, row)
            for row in self.scored
            if (
                spread := row.spread(
                    lambda run: (run.validation if validated else run.quality).get(self.metric)
                )
            )
        ]
        choose = max if self.greater_is_better else min
        return choose(rows, key=lambda pair: pair[0])[1] if rows else None

    def to_json(self) -> dict[str, Any]:
        """JSON values only; with a summary of every row beside its runs."""
        mapping = asdict(self)
        for row, written in zip(self.rows, mapping["rows"], strict=True):
            summary = {
                "failure": row.failure,
                self.metric: row.metric(self.metric),
                "interval": row.interval(self.metric),
                "trained_share": row.trained_share(),
                "peak_memory": row.memory(),
                "tokens_per_second": row.spread(lambda run: run.tokens_per_second),
                "seconds": row.spread(lambda run: run.seconds),
            }
            written["summary"] = {
                k: asdict(v) if isinstance(v, Spread) else v for k, v in summary.items()
            }
        return mapping


def read_run(folder: Path, seed: int) -> SeedRun:
    """The result of a finished run, from its folder's metrics.json and log.csv."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    curve = read_curve(folder / "log.csv")
    return run_from_metrics(metrics, seed, folder=folder, curve=curve)


def run_from_metrics(
    metrics: Mapping[str, Any],
    seed: int,
    *,
    folder: Path | None = None,
    curve: tuple[tuple[float, float], ...] = (),
) -> SeedRun:
    """A run from what metrics.json holds; scored on test, or on validation where there is none."""
    split = "test" if metrics.get("test") else "validation"
    scored: Mapping[str, Any] = metrics.get(split) or {}
    validation: Mapping[str, Any] = metrics.get("validation") or {}
    train: Mapping[str, Any] = metrics.get("train") or {}
    return SeedRun(
        seed=seed,
        folder=None if folder is None else str(folder),
        split=split,
        quality={k: float(v) for k, v in scored.items() if isinstance(v, int | float)},
        validation={k: float(v) for k, v in validation.items() if isinstance(v, int | float)},
        interval={k: (float(v[0]), float(v[1])) for k, v in scored.get("interval", {}).items()},
        trained_parameters=train.get("trained_parameters"),
        total_parameters=train.get("total_parameters"),
        peak_memory={
            k: int(v) for k, v in (train.get("peak_memory") or {}).items() if v is not None
        },
        tokens_per_second=train.get("tokens_per_second"),
        seconds=train.get("training_seconds", train.get("seconds")),
        artifact_bytes=train.get("artifact_bytes"),
        learning_rate=train.get("learning_rate"),
        curve=curve,
    )


def read_curve(path: Path) -> tuple[tuple[float, float], ...]:
    """The training loss by step from a run's log.csv; empty where there is none."""
    if not path.is_file():
        return ()
    with path.open(newline="", encoding="utf-8") as file:
        return tuple(
            (float(line["step"]), float(line["loss"]))
            for line in csv.DictReader(file)
            if line.get("step") and line.get("loss")
        )
