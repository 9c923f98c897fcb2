"""The command line on tiny models, nothing faked: every verb a user types, one after the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def write_rows(folder: Path, task: str) -> Path:
    folder.mkdir()
    for split, count in (("train", 32), ("validation", 8), ("test", 16)):
        rows = [
            {"review": f"a {word} film , number {i}", "stars": word}
            if task == "text-classification"
            else {"question": f"name number {i}", "answer": f"a {word} dog"}
            for i, word in ((i, ("good", "bad")[i % 2]) for i in range(count))
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines)
    return folder


CASES = {
    "text-classification": (
        "bert", {"text": "review", "label": "stars"}, {"review": "a good dog"}, ["lora"], "2",
    ),
    "causal-lm": (
        "llama", {"prompt": "question", "completion": "answer"}, {"question": "name"},
        ["lora", "full"], "1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("task", CASES)
def test_every_verb(
    task: str, tiny_checkpoint: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from peftlab.cli import main

    family, columns, input_row, methods, seeds = CASES[task]
    kind = "classification" if task == "text-classification" else "causal"
    file = tmp_path / "run.yaml"
    config: dict[str, Any] = {
        "model": {"name": str(tiny_checkpoint(family, kind))},
        "task": task,
        "data": {"source": str(write_rows(tmp_path / "my rows", task)), "columns": columns},
        "method": {"name": "lora", "r": 2},
        "train": {"max_steps": 2, "global_batch_size": 8},
        "output": {"dir": str(tmp_path / "runs" / "one")},
    }
    if kind == "causal":
        config["eval"] = {"generation": {"max_new_tokens": 8}}
    file.write_text(json.dumps(config))

    def call(*words: str) -> Any:
        capfd.readouterr()
        code = main([*words, "--json"])
        out, err = capfd.readouterr()
        assert code == 0, err
        return json.loads(out)

    plan = call("plan", str(file))
    assert plan["steps"] == 2
    assert plan["data"]["train"]["rows"] == 32
    assert 0 < plan["trained_parameters"] < plan["total_parameters"]
    assert sum(plan["labels"].values()) == (32 if kind == "classification" else 0)

    samples = call("data", str(file), "-n", "2")["samples"]
    assert len(samples) == 2
    shown = samples[0].get("trained") or samples[0]["label"]
    assert "good" in shown

    trained = call("train", str(file))
    run = trained["folder"]
    assert trained["metrics"]["train"]["steps"] == 2
    evaluated = call("eval", run, "--split", "test")["metrics"]
    assert evaluated["loss"] == pytest.approx(trained["metrics"]["test"]["loss"], rel=1e-5)

    question = tmp_path / "ask.jsonl"
    question.write_text(json.dumps(input_row) + "\n")
    by_text = call("predict", run, next(iter(input_row.values())))
    by_file = call("predict", run, "--file", str(question))
    answer = "label" if kind == "classification" else "text"
    assert by_text[0][answer] == by_file[0][answer]

    assert call("inspect", run)["kind"] == "run"
    assert call("inspect", f"{run}/adapter")["r"] == 2
    assert call("inspect", config["model"]["name"])["kind"] == "checkpoint"

    table = tmp_path / "table"
    bench = call(
        "bench", str(file), "--methods", ",".join(methods), "--seeds", seeds, "-o", str(table)
    )
    assert [row["label"] for row in bench["rows"]] == ["untuned", *methods]
    assert all(not row.get("failure") for row in bench["rows"])
    assert {p.name for p in table.iterdir()} >= {"results.json", "results.md", "report.html"}
    assert "<svg" in (table / "report.html").read_text()
    assert ("±" in (table / "results.md").read_text()) == (seeds == "2")
