"""Runs every method of a configuration, each in a fresh process, and gathers what came of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from peftlab.bench.bench_folder import RESULTS, UNTUNED, BenchFolder, claim
from peftlab.bench.processes import JobOutcome, JobServer
from peftlab.bench.results import BenchResult, Row, SeedRun, read_run, run_from_metrics
from peftlab.bench.rows import PlannedRow, describe_settings, plan_rows
from peftlab.config.methods.options import yardstick
from peftlab.config.schema import RunConfig
from peftlab.errors import ConfigError, DataError, Interrupted

logger = logging.getLogger("peftlab")

# Named, not imported: the pipeline stands above the bench.
TRAIN = "peftlab.pipeline.train:train"
EVALUATE_UNTUNED = "peftlab.pipeline.untuned:evaluate_untuned"


def run_bench(
    config: RunConfig,
    *,
    folder: Path,
    train: str = TRAIN,
    untuned: str = EVALUATE_UNTUNED,
    preload: Sequence[str] | None = None,
) -> BenchResult:
    """Run `config.bench` and return its rows; `folder`/results.json holds them after every run.

    `train` names a function that takes a `RunConfig` and leaves a run folder in its `output.dir`;
    `untuned` one that returns {"test": metrics} of the model before training. A method that fails
    is a row with its reason; data that cannot be used before any row has a result raises
    `DataError`. Raises `ConfigError` where `folder` is taken or no split can be scored.
    `preload` are the modules that the worker imports before its first job.
    """
    from peftlab.measure.environment import describe_environment

    _check_scored(config)
    planned = plan_rows(config, folder)
    runs = tuple(Path(run.output.dir).name for row in planned for run in row.configs)
    claimed = claim(folder, runs, overwrite=config.output.overwrite)
    started = time.monotonic()
    result = BenchResult(
        model=config.model.name,
        task=config.task.name,
        data=config.data.source,
        metric="",
        split="test",
        seeds=config.bench.seeds,
        seconds=0.0,
        complete=False,
        environment=describe_environment(),
        rows=(),
        runs=runs,
    )
    # Before any job runs: from here on the folder is known as a bench, and these runs as its own.
    claimed.write(result.to_json())
    claimed.log(UNTUNED).parent.mkdir(exist_ok=True)
    try:
        with JobServer(preload) as server:
            for rows in _rows(config, planned, claimed, server, train, untuned):
                result = _so_far(result, rows, time.monotonic() - started)
                claimed.write(result.to_json())
                if rows[-1].runs:
                    logger.info("    %s", _one_line(rows[-1].runs[-1], result.metric))
    except DataError:
        claimed.remove()
        raise
    except KeyboardInterrupt:
        claimed.clear_unfinished()
        raise Interrupted(
            f"Stopped after {len(result.rows)} rows; their results are in {folder / RESULTS}."
        ) from None
    result = replace(result, complete=True)
    claimed.write(result.to_json())
    return result


def _check_scored(config: RunConfig) -> None:
    """Refuse a bench whose runs could not be compared by quality."""
    splits = config.data.splits
    if splits.validation is None and splits.test is None:
        raise ConfigError(
            "bench needs a validation or a test split to compare methods on, and "
            "data.splits.validation and data.splits.test are both null; set one of them."
        )


def _rows(
    config: RunConfig,
    planned: Sequence[PlannedRow],
    claimed: BenchFolder,
    server: JobServer,
    train: str,
    untuned: str,
) -> Iterator[list[Row]]:
    """Run every job; yield all rows so far after each.

    Raises `DataError` for data that a job refuses while no row has a result.
    """
    rows: list[Row] = []
    total = sum(len(plan.configs) for plan in planned) + config.bench.untuned
    job = 0
    if config.bench.untuned:
        job += 1
        logger.info("bench %d/%d: untuned", job, total)
        # The model as it is in the checkpoint: not in 8 bits, with no pooling of a method's.
        plain = config.model_copy(update={"method": yardstick()})
        outcome = server.run(untuned, plain, log=claimed.log(UNTUNED))
        _refuse_data(outcome, rows)
        rows.append(_untuned_row(config, outcome))
        yield rows
    for plan in planned:
        runs: list[SeedRun] = []
        rows.append(_row(plan, runs))
        for run_config in plan.configs:
            job += 1
            name = Path(run_config.output.dir).name
            logger.info("bench %d/%d: %s, seed %d", job, total, plan.label, run_config.train.seed)
            outcome = server.run(train, run_config, log=claimed.log(name))
            _refuse_data(outcome, rows)
            runs.append(_finished(run_config, outcome))
            if runs[-1].error is not None:
                claimed.clear_unfinished()
            rows[-1] = _row(plan, runs)
            yield rows


def _refuse_data(outcome: JobOutcome, rows: Sequence[Row]) -> None:
    """Raise a job's `DataError` where every other job would meet it too, and nothing is lost.

    Once a row has a result the data was good then, and the error is one row's failure.
    """
    if outcome.kind == DataError.__name__ and not any(row.good for row in rows):
        raise DataError(outcome.error or "the data cannot be used")


def _finished(config: RunConfig, outcome: JobOutcome) -> SeedRun:
    folder = Path(config.output.dir)
    if outcome.error is None and not (folder / "metrics.json").is_file():
        outcome = JobOutcome(None, f"The run left no metrics in {folder}.", "MetricsMissing")
    if outcome.error is not None:
        return SeedRun(seed=config.train.seed, error=outcome.error, kind=outcome.kind)
    return read_run(folder, config.train.seed)


def _untuned_row(config: RunConfig, outcome: JobOutcome) -> Row:
    value = outcome.value or {}
    run = (
        SeedRun(seed=config.train.seed, error=outcome.error, kind=outcome.kind)
        if outcome.error is not None
        else run_from_metrics(value, config.train.seed)
    )
    return Row("untuned", "untuned", str(value.get("what", "")), {}, (run,))


def _row(plan: PlannedRow, runs: Sequence[SeedRun]) -> Row:
    config = plan.configs[0]
    rate = next((run.learning_rate for run in runs if run.learning_rate is not None), None)
    mapping: dict[str, Any] = {
        "method": config.method.model_dump(mode="json"),
        "train": config.train.model_dump(mode="json"),
    }
    return Row(plan.label, plan.method.name, describe_settings(config, rate), mapping, tuple(runs))


def _so_far(result: BenchResult, rows: Sequence[Row], seconds: float) -> BenchResult:
    good = [run for row in rows for run in row.good]
    # The metric that chooses is the one a run gives an interval for.
    chosen = [name for run in reversed(good) for name in run.interval]
    metric = next(iter([*chosen, *(name for run in good for name in run.quality)]), result.metric)
    split = good[-1].split if good else result.split
    return replace(result, metric=metric, split=split, rows=tuple(rows), seconds=seconds)


def _one_line(run: SeedRun, metric: str) -> str:
    if run.error is not None:
        return f"failed: {run.error}"
    name = metric if metric in run.quality else next(iter(run.quality), "")
    quality = f"{name} {run.quality[name]:.3f}" if name else "no metric"
    return f"{quality}, trained in {run.seconds:.0f} s" if run.seconds is not None else quality
