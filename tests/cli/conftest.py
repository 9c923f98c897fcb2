"""Runs command lines in this process, with stand-ins for the modules that commands call."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from peftlab.cli import main

CONFIG = """\
model: {name: some/model}
task: text-classification
data: {source: rows.csv}
method: lora
"""
SPLIT = {"rows": 40, "truncated": 2, "p50": 12, "p95": 60, "longest": 64, "tokens": 480}
METRICS = {
    "train": {
        "seconds": 12.5,
        "tokens_per_second": 1234.5,
        "peak_memory": {"total": 1 << 29},
        "trained_parameters": 770,
    },
    "validation": {"accuracy": 0.9, "loss": 0.3},
    "test": {"accuracy": 0.875, "loss": float("nan"), "interval": {"accuracy": [0.85, 0.9]}},
}
PLAN = {
    "config": {
        "model": {"name": "some/model"},
        "task": {"name": "text-classification"},
        "data": {"source": "rows.csv"},
        "method": {"name": "lora"},
    },
    "output": "runs/model-lora",
    "data": {"train": SPLIT, "test": SPLIT},
    "labels": {"negative": 10, "positive": 30},
    "coverage": {
        "rows": [
            {"pattern": "encoder.layer.*.query", "kind": "Linear", "parameters": 9, "trained": 3}
        ]
    },
    "trained_parameters": 770,
    "total_parameters": 77000,
    "max_length": 64,
    "micro_batch_size": 8,
    "accumulation_steps": 2,
    "steps_per_epoch": 3,
    "steps": 9,
    "learning_rate": 0.002,
    "other_learning_rates": [],
    "dtypes": {"at_rest": "bfloat16", "compute": "float32"},
    "fusion": {
        "fused": ["a", "b"],
        "not_fused": [{"name": "c", "kind": "k", "reason": "it is a variant"}],
        "widened": None,
    },
    "notes": ["loaded in fp32"],
}


@dataclass
class Result:
    """The exit code and output of a command line."""

    code: int
    out: str
    err: str


@dataclass
class Calls:
    """The calls of the stand-ins in order: (name, positional, keywords)."""

    made: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    answers: dict[str, Any] = field(default_factory=dict)

    def stand_in(self, name: str, answer: Any) -> Callable[..., Any]:
        self.answers[name] = answer

        def call(*args: Any, **kwargs: Any) -> Any:
            self.made.append((name, args, kwargs))
            answer = self.answers[name]
            if isinstance(answer, BaseException):
                raise answer
            return answer(*args, **kwargs) if callable(answer) else answer

        return call

    @property
    def last(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        return self.made[-1]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """`cli("train", "run.yaml")`: runs a command line and captures both streams."""

    def run(*words: str) -> Result:
        capfd.readouterr()
        code = main(list(words))
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return Result(code, out, err)

    return run


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A configuration file."""
    file = tmp_path / "run.yaml"
    file.write_text(CONFIG)
    return str(file)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Stand-ins for every module that a command calls."""
    made = Calls()
    run = SimpleNamespace(
        folder=Path("runs/model-lora"),
        metrics=METRICS,
        evaluate=made.stand_in("evaluate", METRICS["test"]),
        predict=made.stand_in(
            "predict",
            lambda rows: [
                {"label": "positive", "probability": 0.75, "probabilities": {"positive": 0.75}}
                for _ in rows
            ],
        ),
        loaded=None,
        task=SimpleNamespace(
            answer_text=lambda answer: answer.get("text", answer.get("label")),
            input_row=lambda text, earlier: {"text": text, "turn": len(earlier)},
        ),
    )
    bench = SimpleNamespace(to_json=lambda: {"rows": ["lora"]}, scored=("lora",))
    demo = SimpleNamespace(to_json=lambda: {"answers": []}, text=lambda: "the table")
    modules: dict[str, dict[str, Any]] = {
        "peftlab.pipeline": {},
        "peftlab.pipeline.plan": {
            "plan": made.stand_in("plan", SimpleNamespace(to_json=lambda: PLAN)),
            "preview": made.stand_in(
                "preview",
                {
                    "source": "rows.csv",
                    "max_length": 64,
                    "splits": {"train": SPLIT},
                    "labels": {"negative": 10},
                    "samples": [{"tokens": 3, "text": "[CLS] fine [SEP]", "label": "negative"}],
                },
            ),
        },
        "peftlab.pipeline.train": {"train": made.stand_in("train", run)},
        "peftlab.pipeline.run": {"open_run": made.stand_in("open_run", run)},
        "peftlab.pipeline.inspection": {
            "inspect": made.stand_in("inspect", {"kind": "adapter", "tensors": {"count": 1200}})
        },
        "peftlab.bench.lab": {"run_bench": made.stand_in("run_bench", bench)},
        "peftlab.bench.report.write": {
            "write_reports": made.stand_in("write_reports", Path("out/report.html")),
            "text_table": lambda result: "method  accuracy",
        },
        "peftlab.bench.report.quantities": {
            "findings": lambda result: ["lora is best."],
            "why_nothing_scored": lambda result: None if result.scored else "None was scored.",
        },
        "peftlab.demo.main_job": {"run_demo": made.stand_in("run_demo", demo)},
        "peftlab.measure.environment": {
            "describe_environment": made.stand_in(
                "describe_environment",
                {
                    "python": "3.11",
                    "cpu": {"model": "a processor", "memory": 8 << 30},
                    "devices": [],
                    "optional": {"triton": {"usable": False, "why_not": "no CUDA device"}},
                },
            )
        },
    }
    for name, contents in modules.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    return made
