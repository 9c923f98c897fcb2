"""Tagging and answering through every verb: on made rows by every method, and on real ones."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import peftlab
from peftlab import pipeline
from peftlab.cli import main
from peftlab.config import load_config

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ANIMALS, FOODS = ("dog", "cat", "girl"), ("food", "book", "phone")


def tagged(start: int, count: int) -> list[dict[str, Any]]:
    rows = []
    for i in range(start, start + count):
        first, second = ANIMALS[i % 3], FOODS[(i // 3) % 3]
        tokens = ["the", "little", first, "loved", second, "and", str(i % 10)]
        rows.append(
            {"tokens": tokens, "ner_tags": ["O", "B-who", "I-who", "O", "B-what", "O", "O"]}
        )
    return rows


def questions(start: int, count: int) -> list[dict[str, Any]]:
    rows = []
    for i in range(start, start + count):
        first, second = ANIMALS[i % 3], FOODS[(i // 3) % 3]
        context = f"the {first} loved a nice {second} and said {i % 10} ."
        answers = {"text": [second], "answer_start": [context.index(second)]}
        if i % 4 == 0:
            context, answers = (
                f"the {first} was sad and said {i % 10} .",
                {"text": [], "answer_start": []},
            )
        rows.append({"id": str(i), "question": "loved", "context": context, "answers": answers})
    return rows


TASKS: dict[str, tuple[Any, str, float]] = {
    "token-classification": (tagged, "f1", 0.9),
    "question-answering": (questions, "f1", 0.6),
}


def source(folder: Path, task: str) -> Path:
    for name, start, count in (("train", 0, 48), ("validation", 48, 12), ("test", 60, 16)):
        rows = TASKS[task][0](start, count)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def settings(model: Any, task: str, data: Path, run: Path, **train: Any) -> dict[str, Any]:
    return {
        "model": {"name": str(model), "dtype": "float32"},
        "task": task,
        "data": {"source": str(data), "max_length": 24},
        "train": {"global_batch_size": 8, "save_every": "never", **train},
        "eval": {"every": "never"},
        "output": {"dir": str(run), "plots": False},
    }


@pytest.mark.parametrize(
    ("task", "family", "method"),
    # Every method and every architecture with each task; which of them meet changes.
    [("token-classification", "bert", "lora"), ("token-classification", "t5", "full"),
     ("token-classification", "llama", {"name": "last_n", "n": 1}),
     ("token-classification", "gpt2", "lora"), ("token-classification", "bert", "head"),
     ("question-answering", "llama", "lora"), ("question-answering", "bert", "full"),
     ("question-answering", "gpt2", {"name": "last_n", "n": 1}),
     ("question-answering", "t5", "lora"), ("question-answering", "llama", "head")],
)  # fmt: skip
def test_every_method_learns_and_answers(
    task: str, family: str, method: Any, tiny_checkpoint: Any, tmp_path: Path
) -> None:
    _, best, enough = TASKS[task]
    rate = {"head": 0.05, "lora": 1e-2}.get(str(method), 3e-3)
    made = settings(tiny_checkpoint(family), task, source(tmp_path, task), tmp_path / "run",
                    num_train_epochs=8, learning_rate=rate)  # fmt: skip
    run = peftlab.train(made, method=method)
    reported = run.metrics["test"]
    if method != "head":  # which reads what a random base happens to say
        assert reported[best] >= enough
    low, high = reported["interval"][best]
    assert low <= reported[best] <= high
    reopened = pipeline.open_run(run.folder)
    again = reopened.evaluate("test")
    assert again[best] == pytest.approx(reported[best], abs=1e-4)
    rows = [{k: v for k, v in row.items() if k not in ("ner_tags", "answers")}
            for row in TASKS[task][0](60, 3)]  # fmt: skip
    first, second = run.predict(rows), reopened.predict(rows)
    for one, two in zip(first, second, strict=True):
        assert one.keys() == two.keys()
        for key in ("tags", "answer", "start", "end"):
            assert one.get(key) == two.get(key)
    if method == "head":
        return
    merged = tmp_path / "merged"
    reopened.export(merged)
    kind = reopened.task.head().auto_class
    plain = getattr(transformers, kind).from_pretrained(merged).eval()
    loaded = reopened.loaded
    task_, tokenizer = reopened.task, loaded.tokenizer
    checked = pipeline.preparation.check(reopened.config)
    encoded = task_.encode(checked.splits.get("test"), tokenizer, max_length=24).rows
    inputs = task_.model_inputs(task_.collator(tokenizer)(list(encoded)))
    with torch.no_grad():
        ours, theirs = loaded.model.eval()(**inputs), plain(**inputs)
    for key in theirs:
        if key.endswith("logits"):
            torch.testing.assert_close(theirs[key], ours[key], rtol=2e-3, atol=2e-3)
    if kind == "AutoModelForTokenClassification":
        assert set(plain.config.label2id) == {"O", "B-who", "I-who", "B-what"}


@pytest.mark.parametrize("task", TASKS)
def test_the_other_verbs(
    task: str, tiny_checkpoint: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from peftlab.pipeline.untuned import evaluate_untuned

    made = settings(tiny_checkpoint("bert"), task, source(tmp_path, task), tmp_path / "run",
                    max_steps=2)  # fmt: skip
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(made | {"method": "lora"}))
    assert main(["plan", str(file)]) == 0
    assert main(["data", str(file)]) == 0
    shown = capfd.readouterr().out
    assert ("little/B-who" if task == "token-classification" else "answer") in shown
    before = evaluate_untuned(load_config(file, []).config)
    assert before["what"] == ("majority tag" if task == "token-classification" else "no answer")
    assert main(["train", str(file)]) == 0
    assert main(["eval", str(tmp_path / "run")]) == 0
    capfd.readouterr()
    text = "the little dog loved food" if task == "token-classification" else "loved? a dog"
    assert main(["predict", str(tmp_path / "run"), text]) == 0
    assert main(["predict", str(tmp_path / "run"), text, "--json"]) == 0
    shown = capfd.readouterr().out
    assert ('"entities"' if task == "token-classification" else '"n_best"') in shown
    if task == "question-answering":
        assert main(["predict", str(tmp_path / "run"), "loved?"]) == 3
        assert "row 1 to predict has no 'context'" in capfd.readouterr().err


REAL: dict[str, tuple[str, dict[str, Any], str]] = {
    "token-classification": ("wnut17", {"max_train_samples": 96, "max_length": 32}, "tokens"),
    "question-answering": (
        "squad_v2_small",
        {"max_train_samples": 48, "max_length": 64},
        "context",
    ),
}


@pytest.mark.parametrize("task", REAL)
def test_real_rows_with_a_real_model(
    task: str, minilm: Path, shared_data: Path, tmp_path: Path
) -> None:
    name, data, column = REAL[task]
    made = settings(minilm, task, shared_data / name, tmp_path / "run", max_steps=12,
                    learning_rate=1e-3)  # fmt: skip
    made["data"] |= {**data, "max_eval_samples": 12}
    made["method"] = {"name": "lora", "r": 8, "target_modules": ["query", "key", "value", "dense"]}
    run = peftlab.train(made)
    # What a head that knows nothing starts at: every one of 13 tags, or of 64 positions, alike.
    start = math.log(64 if task == "question-answering" else 13)
    assert run.metrics["train"]["steps"] == 12
    assert run.metrics["test"]["loss"] < start * (0.85 if task == "question-answering" else 0.5)
    if task == "question-answering":
        assert run.task.chosen
        assert run.metrics["validation"]["f1"] >= run.metrics["validation"]["no_answer_f1"] * 0.4
    rows = list(pipeline.preparation.check(run.config).splits.get("test").select(range(4)))
    answers = run.predict(
        [{k: v for k, v in row.items() if k not in ("tags", "answers")} for row in rows]
    )
    for row, answer in zip(rows, answers, strict=True):
        if task == "token-classification":
            assert len(answer["tags"]) == len(row["tokens"])
        for span in answer.get("n_best", []):
            assert row[column][span["start"] : span["end"]] == span["text"]
    run.export(tmp_path / "merged")
    merged = getattr(transformers, run.task.head().auto_class).from_pretrained(tmp_path / "merged")
    assert merged.config.num_labels == (2 if task == "question-answering" else 13)
