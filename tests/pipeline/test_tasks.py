"""The tasks' own options through every verb: a template, a plan, a look at rows, a run, a bench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import peftlab
from peftlab import pipeline
from peftlab.cli import main
from peftlab.config import load_config, template
from peftlab.errors import ConfigError

torch = pytest.importorskip("torch")

WORDS = ("good", "bad", "dull")


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_of(kind: str, count: int, start: int = 0) -> list[dict[str, Any]]:
    """Labels that the text determines: of one word, of two words, or a number."""
    result: list[dict[str, Any]] = []
    for i in range(start, start + count):
        first, second = WORDS[i % 3], WORDS[(i // 3) % 3]
        text = f"a {first} and {second} film , number {i % 10}"
        label: Any = {
            "one": first,
            "many": sorted({first, second} - {"dull"}),
            "number": {"good": 1.0, "bad": -1.0, "dull": 0.0}[first] + 0.25,
        }[kind]
        result.append({"text": text, "label": label})
    return result


@pytest.fixture
def data(tmp_path: Path) -> Any:
    def make(kind: str) -> Path:
        for name, count, start in (("train", 64, 0), ("validation", 16, 64), ("test", 18, 80)):
            write(tmp_path, name, rows_of(kind, count, start))
        return tmp_path

    return make


PROBLEMS: dict[str, tuple[str, dict[str, Any], str]] = {
    "single": ("one", {"class_weights": {"good": 2}}, "f1_macro"),
    "several": ("many", {"class_weights": "balanced"}, "f1_micro"),
    "number": ("number", {"problem": "regression"}, "pearson"),
}


@pytest.mark.parametrize(
    ("problem", "family", "method"),
    [("single", "llama", "lora"), ("single", "bert", "head"), ("several", "bert", "lora"),
     ("several", "llama", "head"), ("number", "llama", "lora"), ("number", "bert", "head")],
)  # fmt: skip
def test_every_problem_is_learnt_and_answered(
    problem: str, family: str, method: str, data: Any, tiny_checkpoint: Any, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    kind, options, best = PROBLEMS[problem]
    run = peftlab.train(
        {
            "model": {"name": str(tiny_checkpoint(family)), "dtype": "float32"},
            "data": {"source": str(data(kind))},
            "method": method,
            "train": {"num_train_epochs": 12, "global_batch_size": 8,
                      "learning_rate": 1e-2 if method == "lora" else 0.1,
                      "save_every": "never"},
            "output": {"dir": str(tmp_path / "run"), "plots": False},
        },
        task={"name": "text-classification", **options},
    )  # fmt: skip
    result = run.metrics["test"]
    assert result[best] > (0.8 if method == "lora" else 0.4)
    low, high = result["interval"][best]
    assert low <= result[best] <= high
    reopened = pipeline.open_run(run.folder)
    assert reopened.evaluate("test")[best] == pytest.approx(result[best], abs=1e-4)
    texts = [row["text"] for row in rows_of(kind, 3)]
    answers = reopened.predict(texts)
    for first, second in zip(answers, run.predict(texts), strict=True):
        assert first.keys() == second.keys()
    capfd.readouterr()
    assert main(["predict", str(run.folder), *texts]) == 0
    shown = capfd.readouterr().out
    assert reopened.task.answer_text(answers[0]).split()[0] in shown
    if problem != "single" and method == "lora":
        merged = tmp_path / "merged"
        reopened.export(merged)
        config = json.loads((merged / "config.json").read_text())
        assert config["problem_type"] in {"multi_label_classification", "regression"}


def test_a_template_of_the_new_options(data: Any, tiny_checkpoint: Any, tmp_path: Path) -> None:
    source = data("many")
    file = tmp_path / "run.yaml"
    text = template(str(tiny_checkpoint("bert")), "text-classification", str(source), "head")
    file.write_text(text.replace("# problem: auto", "problem: multi_label"))
    config = load_config(file, ["task.class_weights=balanced"]).config
    assert config.task.label_kind == "many"
    plan = pipeline.plan(config).to_json()
    assert plan["config"]["task"] == {
        "name": "text-classification", "problem": "multi_label", "class_weights": "balanced"
    }  # fmt: skip
    assert set(plan["labels"]) == {"good", "bad"}
    shown = pipeline.preview(config, rows=2)
    assert shown["samples"][0]["label"] == ["good"]
    assert load_config(file, ["task=causal-lm", "method=lora"]).config.task.name == "causal-lm"


def test_rows_as_a_language_model_reads_them(tiny_checkpoint: Any, tmp_path: Path) -> None:
    write(tmp_path, "train", [{"prompt": "number 1", "completion": "a film"}] * 4)
    config = load_config(None, [
        f"model.name={tiny_checkpoint('llama', 'causal')}", "task=causal-lm", "method=lora",
        f"data.source={tmp_path}", "data.splits.validation=null",
    ]).config  # fmt: skip
    (sample,) = pipeline.preview(config, rows=1)["samples"]
    assert sample["trained"].split() == ["a", "film", "</s>"]
    assert sample["tokens"] == 6
    assert pipeline.plan(config).labels == {}


def test_metrics_of_another_problem_are_refused(data: Any, tiny_checkpoint: Any) -> None:
    ran = [
        f"model.name={tiny_checkpoint('bert')}", "task=text-classification", "method=head",
        f"data.source={data('one')}",
    ]  # fmt: skip
    for key in ("eval.best=pearson", "eval.metrics=[f1_macro, pearson]"):
        with pytest.raises(ConfigError, match=r"'pearson'; text-classification, as it is"):
            pipeline.plan(load_config(None, [*ran, key]).config)


def test_a_bench_of_a_regression(data: Any, tiny_checkpoint: Any, tmp_path: Path) -> None:
    from peftlab.pipeline.untuned import evaluate_untuned

    config = load_config(None, [
        f"model.name={tiny_checkpoint('bert')}", "task=text-classification", "method=head",
        "task.problem=regression", f"data.source={data('number')}",
    ]).config  # fmt: skip
    result = evaluate_untuned(config)
    assert result["what"] == "training mean"
    assert result["test"]["pearson"] == 0
    assert result["test"]["interval"]["pearson"] == [0, 0]
