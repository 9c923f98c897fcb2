"""Jobs that a worker finds by name: each does in no time what training would."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from peftlab.config.methods.full import FullOptions
from peftlab.config.schema import RunConfig
from peftlab.errors import CheckFailed, DataError

CALLS = 0


def train(config: RunConfig) -> None:
    """Leaves a run folder, or fails in the way that the row's epochs ask for."""
    global CALLS
    CALLS += 1
    epochs = config.train.num_train_epochs
    if epochs == 101:
        raise CheckFailed("No module is named 'quary'; the nearest is 'query'.")
    if epochs == 102:
        os.kill(os.getpid(), signal.SIGKILL)
    if epochs == 103:
        os._exit(7)
    if epochs == 104:
        raise ZeroDivisionError("not a user's mistake")
    if epochs == 105:
        raise DataError("train.jsonl:3: label is null")
    if epochs == 106:
        return
    folder = Path(config.output.dir)
    folder.mkdir(parents=True)
    quality = 0.9 + config.train.seed / 1000
    metrics = {
        "train": {
            "seconds": 2.0,
            "tokens_per_second": 1000.0,
            "trained_parameters": 10,
            "total_parameters": 1000,
            "peak_memory": {"total": 100, "weights": 60, "gradients": 10, "optimizer": 20,
                            "activations": 10},
            "artifact_bytes": 4096,
            "learning_rate": 0.002,
            "pid": os.getpid(),
            "calls": CALLS,
            "loaded": "decimal" in sys.modules,
        },
        "test": {"accuracy": quality, "loss": 0.3, "interval": {"accuracy": [0.88, 0.97]}},
    }  # fmt: skip
    if epochs == 107:
        del metrics["test"]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "log.csv").write_text("step,loss\n10,0.7\n20,0.5\n,\n")


def untuned(config: RunConfig) -> dict[str, Any]:
    """The majority class, of a configuration without a method's own ideas about the base."""
    assert isinstance(config.method, FullOptions)
    return {
        "what": "majority class",
        "test": {"accuracy": 0.5, "interval": {"accuracy": [0.4, 0.6]}},
    }


def mark_seen(config: RunConfig) -> None:
    """Fails unless the folder was marked as a bench, with this run's name, before it began."""
    runs = Path(config.output.dir).parent
    marker = json.loads((runs.parent / "results.json").read_text())
    assert Path(config.output.dir).name in marker["runs"]
    assert marker["complete"] is False
    train(config)


def sleep(config: RunConfig) -> None:
    """Says who it is, then takes longer than any test waits."""
    folder = Path(config.output.dir)
    folder.with_name(f"{folder.name}.unfinished").mkdir(parents=True)
    folder.with_name(f"{folder.name}.unfinished.lock").touch()
    Path(config.data.source).write_text(str(os.getpid()))
    time.sleep(600)
