"""Whole runs on a CUDA device: `PYTHONPATH=.:kernels python -m pytest -m gpu tests/pipeline`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import peftlab
from peftlab import pipeline

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

WORDS = ("good", "bad")
TEXTS = [f"the dog number {i} was {WORDS[i % 2]}" for i in range(64)]
METHODS: list[Any] = ["head", "last_n", "lora", "qlora", "full"]


def settings(checkpoint: Path, folder: Path, *, labels: bool) -> dict[str, Any]:
    """Rows with one of two words each: name it, or go on with it."""
    source = folder / "rows.jsonl"
    rows = [
        {"text": text, "label": WORDS[i % 2]} if labels
        else {"prompt": f"{text} and", "completion": f" {WORDS[i % 2]}"}
        for i, text in enumerate(TEXTS)
    ]  # fmt: skip
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": {"name": str(checkpoint)},
        "task": "text-classification" if labels else "causal-lm",
        "data": {"source": str(source), "max_length": 32},
        "train": {"num_train_epochs": 12, "global_batch_size": 8, "learning_rate": 1e-2},
        "eval": {} if labels else {"generation": {"max_new_tokens": 3}},
        "output": {"dir": str(folder / "run"), "plots": False},
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "llama"])
def test_labels(family: str, method: str, tiny_checkpoint: Any, tmp_path: Path) -> None:
    made = settings(tiny_checkpoint(family), tmp_path, labels=True)
    name = {"name": "head", "pooling": "model"} if method == "head" else method
    run = peftlab.train(made, method=name)
    assert next(run.loaded.model.parameters()).is_cuda
    if method != "head":
        assert run.metrics["validation"]["accuracy"] >= 0.9
    answers_again(run, "accuracy")

    run.export(tmp_path / "merged")
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    for text, answer in zip(TEXTS[:4], run.predict(TEXTS[:4]), strict=True):
        with torch.no_grad():
            logits = plain.eval()(**tokenizer(text, return_tensors="pt")).logits[0].float()
        value = float(logits.softmax(-1)[plain.config.label2id[answer["label"]]])
        assert value == pytest.approx(answer["probability"], abs=3e-2)


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_language(
    family: str, method: str, dtype: str, tiny_checkpoint: Any, tmp_path: Path
) -> None:
    made = settings(tiny_checkpoint(family, "causal", dtype=dtype), tmp_path, labels=False)
    run = peftlab.train(made, method=method)
    assert next(run.loaded.model.parameters()).is_cuda
    assert run.metrics["validation"]["loss"] < 2
    answers_again(run, "loss")
    run.export(tmp_path / "merged")
    report = json.loads((tmp_path / "merged" / "merge_report.json").read_text())
    assert report["verified"]


def answers_again(run: Any, metric: str) -> None:
    """The run's folder, opened again, evaluates and predicts as the run did."""
    again = pipeline.open_run(run.folder)
    value = again.evaluate("validation")[metric]
    assert value == pytest.approx(run.metrics["validation"][metric], rel=2e-2, abs=2e-3)
    assert len(again.predict(TEXTS[:3])) == 3
