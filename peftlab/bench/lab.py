"""Runs every method of a configuration, each in a fresh process, and gathers what came of it."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from peftlab.bench.processes import JobOutcome, JobServer
from peftlab.bench.results import BenchResult, Row, SeedRun, read_run, run_from_metrics
from peftlab.bench.rows import PlannedRow, describe_settings, plan_rows
from peftlab.config.schema import FullMethod, RunConfig
from peftlab.errors import ConfigError, DataError, Interrupted

logger = logging.getLogger("peftlab")

RESULTS = "results.json"
LOGS = "logs"
# Named, not imported: the pipeline stands above the bench.
TRAIN = "peftlab.pipeline.train:train"
UNTUNED = "peftlab.pipeline.untuned:evaluate_untuned"


def run_bench(
    config: RunConfig,
    *,
    folder: Path,
    train: str = TRAIN,
    untuned: str = UNTUNED,
    preload: Sequence[str] | None = None,
) -> BenchResult:
    """Run `config.bench` and return its rows; `folder`/results.json holds them after every run.

    `train` names a function that takes a `RunConfig` and leaves a run folder in its `output.dir`;
    `untuned` one that returns {"test": metrics} of the model before training. A method that fails
    is a row with its reason; data that cannot be used fails them all and raises `DataError`.
    `preload` are the modules that the worker imports before its first job.
    """
    from peftlab.measure.environment import describe_environment

    _check_free(folder, overwrite=config.output.overwrite)
    planned = plan_rows(config, folder)
    started = time.monotonic()
    result = BenchResult(
        model=config.model.name,
        task=config.task,
        data=config.data.source,
        metric="",
        split="test",
        seeds=config.bench.seeds,
        seconds=0.0,
        complete=False,
        environment=describe_environment(),
        rows=(),
    )
    shutil.rmtree(folder / "runs", ignore_errors=True)
    (folder / LOGS).mkdir(parents=True, exist_ok=True)
    try:
        with JobServer(preload) as server:
            for rows in _rows(config, planned, folder, server, train, untuned):
                result = _so_far(result, rows, time.monotonic() - started)
                _write(result, folder)
                if rows[-1].runs:
                    logger.info("    %s", _one_line(rows[-1].runs[-1], result.metric))
    except DataError:
        _remove(folder)
        raise
    except KeyboardInterrupt:
        _clear_unfinished(folder / "runs")
        raise Interrupted(
            f"Stopped after {len(result.rows)} rows; what they found is in {folder / RESULTS}."
        ) from None
    result = replace(result, complete=True)
    _write(result, folder)
    return result


def _rows(
    config: RunConfig,
    planned: Sequence[PlannedRow],
    folder: Path,
    server: JobServer,
    train: str,
    untuned: str,
) -> Iterator[list[Row]]:
    """Run every job; yield all rows so far after each."""
    rows: list[Row] = []
    total = sum(len(plan.configs) for plan in planned) + config.bench.untuned
    job = 0
    if config.bench.untuned:
        job += 1
        logger.info("bench %d/%d: untuned", job, total)
        # The model as it is in the checkpoint: not in 8 bits, with no pooling of a method's.
        plain = config.model_copy(update={"method": FullMethod(name="full")})
        outcome = server.run(untuned, plain, log=folder / LOGS / "untuned.log")
        rows.append(_untuned_row(config, outcome))
        yield rows
    for plan in planned:
        runs: list[SeedRun] = []
        rows.append(_row(plan, runs))
        for run_config in plan.configs:
            job += 1
            name = Path(run_config.output.dir).name
            logger.info("bench %d/%d: %s, seed %d", job, total, plan.label, run_config.train.seed)
            outcome = server.run(train, run_config, log=folder / LOGS / f"{name}.log")
            runs.append(_finished(run_config, outcome))
            rows[-1] = _row(plan, runs)
            yield rows


def _check_free(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds something else, or a finished bench that is not to be replaced."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output.dir is {folder}, which is a file; choose another folder.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    previous = folder / RESULTS
    if not previous.is_file() and not (folder / LOGS).is_dir():
        raise ConfigError(
            f"output.dir is {folder}, which holds files that are no bench; choose another folder."
        )
    if overwrite or not previous.is_file():
        return
    if json.loads(previous.read_text(encoding="utf-8")).get("complete"):
        raise ConfigError(
            f"output.dir is {folder}, which holds a finished bench; choose another folder, "
            "or set output.overwrite=true to replace it."
        )


def _remove(folder: Path) -> None:
    """Leave nothing of ours behind, and everything else."""
    for ours in (folder / "runs", folder / LOGS):
        shutil.rmtree(ours, ignore_errors=True)
    (folder / RESULTS).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def _clear_unfinished(runs: Path) -> None:
    """Remove what a run that was stopped leaves: its staging folder and the lock beside it."""
    for left in runs.glob("*.unfinished*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _finished(config: RunConfig, outcome: JobOutcome) -> SeedRun:
    folder = Path(config.output.dir)
    if outcome.kind == DataError.__name__:
        raise DataError(outcome.error or "the data cannot be used")
    if outcome.error is None and not (folder / "metrics.json").is_file():
        outcome = JobOutcome(None, f"The run left no metrics in {folder}.", "MetricsMissing")
    if outcome.error is not None:
        _clear_unfinished(folder.parent)
        return SeedRun(seed=config.train.seed, error=outcome.error, kind=outcome.kind)
    return read_run(folder, config.train.seed)


def _untuned_row(config: RunConfig, outcome: JobOutcome) -> Row:
    if outcome.kind == DataError.__name__:
        raise DataError(outcome.error or "the data cannot be used")
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
    metric = next((name for run in reversed(good) for name in run.interval), result.metric)
    split = good[-1].split if good else result.split
    return replace(result, metric=metric, split=split, rows=tuple(rows), seconds=seconds)


def _write(result: BenchResult, folder: Path) -> None:
    part = folder / f"{RESULTS}.part"
    part.write_text(json.dumps(result.to_json(), indent=1) + "\n", encoding="utf-8")
    part.replace(folder / RESULTS)


def _one_line(run: SeedRun, metric: str) -> str:
    if run.error is not None:
        return f"failed: {run.error}"
    name = metric if metric in run.quality else next(iter(run.quality), "")
    quality = f"{name} {run.quality[name]:.3f}" if name else "no metric"
    return f"{quality}, trained in {run.seconds:.0f} s" if run.seconds is not None else quality
