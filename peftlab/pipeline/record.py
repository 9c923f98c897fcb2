"""What a finished run writes: the trained part, the record, the metrics, the curves."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab import run_folder
from peftlab.data.bad_rows import counts_of
from peftlab.files import write_json
from peftlab.pipeline.measures import best_metric, evaluation_batch, with_interval

if TYPE_CHECKING:
    from peftlab.evaluation import Evaluation
    from peftlab.measure.memory import MemoryParts, PeakMemory
    from peftlab.pipeline.preparation import Prepared
    from peftlab.training.trainer import TrainResult

RECORD_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Trained:
    """The result of training, and the seconds spent before it on features of a frozen base."""

    result: TrainResult
    feature_seconds: float


def write_run(prepared: Prepared, trained: Trained, memory: PeakMemory, folder: Path) -> None:
    """Evaluate the kept weights once, and write everything that a run folder needs."""
    from peftlab.measure.environment import describe_environment
    from peftlab.methods.apply import save_trained
    from peftlab.training import curves

    config, loaded = prepared.checked.config, prepared.loaded
    save_trained(prepared.applied, folder)
    loaded.tokenizer.save_pretrained(folder / "tokenizer")
    curves.write_curves(
        trained.result.history,
        folder,
        plots=config.output.plots,
        metric=best_metric(config, prepared.checked.task),
        best_step=trained.result.best_step,
        title=f"{config.method.name} on {Path(config.data.source).name}",
    )
    environment = describe_environment()
    write_json(folder / run_folder.ENVIRONMENT, environment)
    metrics: dict[str, Any] = {"train": _training_figures(prepared, trained, memory, folder)}
    if "validation" in prepared.encoded:
        evaluation = _held_out(prepared, "validation")
        prepared = _with_threshold(prepared, evaluation)
        metrics["validation"] = _reported(prepared, evaluation)
    record = _record(prepared) | {"peftlab": environment["packages"].get("peftlab")}
    record["golden"] = _golden(prepared)
    write_json(folder / run_folder.RECORD, record)
    if "test" in prepared.encoded:
        metrics["test"] = _reported(prepared, _held_out(prepared, "test"))
    write_json(folder / run_folder.METRICS, metrics)


def _golden(prepared: Prepared) -> dict[str, Any]:
    """Examples that verify the run when it is opened again."""
    from peftlab.pipeline.golden import record_golden

    splits = prepared.checked.splits
    return record_golden(
        prepared.checked.task,
        prepared.applied.model,
        prepared.loaded.tokenizer,
        splits.train if splits.validation is None else splits.validation,
        max_length=prepared.max_length,
        compute=prepared.loaded.compute,
        rounded=_rounded_base(prepared),
    )


def _rounded_base(prepared: Prepared) -> bool:
    """Whether the base that trained is the checkpoint's but for a rounding to 16 bits.

    A start that is taken out of the weights leaves them so; what is saved is over the checkpoint's.
    """
    import torch

    start = prepared.applied.start
    return start is not None and start.taken_out and prepared.loaded.at_rest != torch.float32


def _with_threshold(prepared: Prepared, evaluation: Evaluation) -> Prepared:
    """With the task's threshold chosen on validation, where it has one."""
    task = prepared.checked.task.with_threshold(evaluation.scores)
    return replace(prepared, checked=replace(prepared.checked, task=task))


def _reported(prepared: Prepared, evaluation: Evaluation) -> dict[str, Any]:
    """Metrics of a split, by the task in its present state."""
    checked = prepared.checked
    again = replace(evaluation, metrics=checked.task.metrics(evaluation.scores))
    return with_interval(checked.task, again, checked.config)


def _held_out(prepared: Prepared, split: str) -> Evaluation:
    from peftlab.evaluation import evaluate

    checked = prepared.checked
    return evaluate(
        prepared.applied.model,
        checked.task,
        prepared.encoded[split].rows,
        prepared.collator,
        batch_size=evaluation_batch(checked.config),
        compute_dtype=prepared.loaded.compute,
    )


def _record(prepared: Prepared) -> dict[str, Any]:
    """What opening the run again needs beside its configuration."""
    checked, loaded = prepared.checked, prepared.loaded
    return {
        "format": RECORD_FORMAT,
        "task": {"name": checked.task.name, "state": checked.task.state()},
        "measured_by": dict(checked.task.measured_by),
        "model": {
            "name": loaded.name,
            "revision": loaded.revision,
            "at_rest": str(loaded.at_rest).removeprefix("torch."),
            "compute": str(loaded.compute).removeprefix("torch."),
            "pooling": loaded.pooling,
            "notes": list(loaded.notes),
        },
        "method": checked.config.method.model_dump(mode="json"),
        "data_format": checked.splits.format,
        "columns": dict(checked.splits.columns),
        "dropped": counts_of(checked.splits.dropped),
        "max_length": prepared.max_length,
        "coverage": prepared.applied.coverage.to_json(),
        "fusion": None if prepared.fusion is None else prepared.fusion.to_json(),
    }


def _training_figures(
    prepared: Prepared, trained: Trained, memory: PeakMemory, folder: Path
) -> dict[str, Any]:
    """The cost of training: bytes, seconds, and numbers of parameters and tokens."""
    from peftlab.methods.apply import method_of
    from peftlab.model.quantized import scalars

    parameters = dict(prepared.applied.model.named_parameters())
    artifact = method_of(prepared.applied.method).folder(folder)
    result = trained.result
    seconds = result.training_seconds + trained.feature_seconds
    return {
        "loss": result.loss,
        "steps": result.steps,
        "epochs": result.epochs,
        "best_step": result.best_step,
        "best_epoch": result.best_epoch,
        "stopped_early": result.stopped_early,
        "seconds": result.seconds + trained.feature_seconds,
        "training_seconds": seconds,
        "tokens": result.tokens,
        "tokens_per_second": result.tokens / max(seconds, 1e-9),
        "learning_rate": prepared.learning_rate,
        "regularization": result.regularization,
        "trained_parameters": sum(parameters[n].numel() for n in prepared.applied.trainable),
        "total_parameters": sum(scalars(p) for p in parameters.values()),
        "peak_memory": asdict(_memory(prepared, result, memory)),
        "artifact_bytes": sum(p.stat().st_size for p in artifact.rglob("*.safetensors")),
    }


def _memory(prepared: Prepared, result: TrainResult, memory: PeakMemory) -> MemoryParts:
    """The run's peak memory, measured from before the model was loaded, by part."""
    from peftlab.measure.memory import breakdown, mapped_weights, weight_bytes

    model = prepared.applied.model
    return breakdown(
        memory.peak + mapped_weights(model),
        weights=weight_bytes(model),
        gradients=result.gradient_bytes,
        optimizer=result.optimizer_bytes,
    )
