"""Going on from a fine-tuned checkpoint, whose head orders its labels otherwise than the data."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peftlab.config import config_from_mapping
from peftlab.errors import CheckFailed, ConfigError
from peftlab.pipeline import preparation
from peftlab.pipeline.own_labels import order_of, write_order
from tests.checkpoints import tiny_config, write_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WORDS = (
    "good", "bad", "film", "story", "book", "great", "awful", "nice", "dull", "number", "review",
    "food", "service", "place",
)  # fmt: skip
OWN = ("neutral", "Entailment", "contradiction")
TAGS = ("O", "I_PER", "B_PER")


def texts() -> list[str]:
    return [f"{WORDS[i % 14]} {WORDS[(3 * i + 1) % 14]} {WORDS[(5 * i) % 14]}" for i in range(40)]


def fine_tuned(folder: Path, kind: str, names: tuple[str, ...] | None) -> tuple[Path, Any]:
    """A checkpoint with a head of its own, whose answers are spread over its labels."""
    folder.mkdir()
    labels = {} if names is None else {"id2label": dict(enumerate(names)),
                                       "label2id": {n: i for i, n in enumerate(names)}}  # fmt: skip
    config = tiny_config("bert", num_labels=3, initializer_range=0.5, **labels)
    torch.manual_seed(3)
    model = getattr(transformers, f"AutoModelFor{kind}").from_config(config).eval()
    write_tokenizer(folder, "bert")
    model.save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = model(**tokenizer(texts(), return_tensors="pt")).logits
        model.classifier.bias.sub_(logits.reshape(-1, 3).mean(0))
        answers = model(**tokenizer(texts(), return_tensors="pt")).logits.argmax(-1)
    model.save_pretrained(folder)
    assert set(answers.flatten().tolist()) == {0, 1, 2}
    return folder, answers.tolist()


def configured(base: Path, rows: list[dict[str, Any]], tmp_path: Path, **changes: Any) -> Any:
    data = tmp_path / "data"
    data.mkdir(exist_ok=True)
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (data / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return config_from_mapping(
        {
            "model": {"name": str(base), "dtype": "float32", **changes.pop("model", {})},
            "task": changes.pop("task", "text-classification"),
            "data": {"source": str(data), "splits": {"validation": None}, **changes},
            "method": "lora",
            "output": {"dir": str(tmp_path / "run")},
        }
    )


def accuracy_before_training(config: Any) -> tuple[float, Any]:
    from peftlab.evaluation import evaluate

    prepared = preparation.prepare(preparation.check(config))
    task = prepared.checked.task
    rows = prepared.encoded["test"].rows
    result = evaluate(prepared.applied.model, task, rows, prepared.collator, batch_size=8)
    return result.metrics["accuracy"], task


@pytest.mark.parametrize("pair", [False, True], ids=["one text", "NLI"])
def test_classes_keep_their_rows(pair: bool, tmp_path: Path) -> None:
    base, answers = fine_tuned(tmp_path / "base", "SequenceClassification", OWN)
    # The data writes the names in lower case; sorted, their order is another.
    rows = [{"premise": t, "hypothesis": ""} if pair else {"text": t} for t in texts()]
    if pair:
        tokenizer = transformers.AutoTokenizer.from_pretrained(base)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(base)
        with torch.no_grad():
            inputs = tokenizer(texts(), [""] * 40, return_tensors="pt")
            answers = model(**inputs).logits.argmax(-1).tolist()
    for row, answer in zip(rows, answers, strict=True):
        row["label"] = OWN[answer].lower()
    seen = {row["label"] for row in rows}
    if len(seen) < 3:
        rows += [{**rows[0], "label": name.lower()} for name in OWN if name.lower() not in seen]
    accuracy, task = accuracy_before_training(configured(base, rows, tmp_path))
    assert accuracy == pytest.approx(40 / len(rows))
    assert task.problem.label_names == tuple(name.lower() for name in OWN)


def test_tags_keep_their_rows(tmp_path: Path) -> None:
    base, answers = fine_tuned(tmp_path / "base", "TokenClassification", TAGS)
    rows = []
    for text, tags in zip(texts(), answers, strict=True):
        words = text.split()
        named = [TAGS[tag].replace("_", "-") for tag in tags[1 : 1 + len(words)]]
        rows.append({"tokens": words, "ner_tags": named})
    config = configured(base, rows, tmp_path, task="token-classification")
    accuracy, task = accuracy_before_training(config)
    assert accuracy == 1.0
    assert task.tags == ("O", "I-PER", "B-PER")


def rows_of(*labels: Any) -> list[dict[str, Any]]:
    return [{"text": t, "label": labels[i % len(labels)]} for i, t in enumerate(texts())]


def plan_of(config: Any) -> preparation.Prepared:
    return preparation.prepare(preparation.check(config), weights=False)


def test_other_labels_are_refused_or_get_a_new_head(tmp_path: Path) -> None:
    base, _ = fine_tuned(tmp_path / "base", "SequenceClassification", OWN)
    config = configured(base, rows_of("spam", "ham", "eggs"), tmp_path)
    with pytest.raises(CheckFailed, match=r"'neutral', .*the data has 'eggs', 'ham', 'spam'.*=new"):
        plan_of(config)
    new = configured(base, rows_of("spam", "ham", "eggs"), tmp_path, model={"head": "new"})
    prepared = preparation.prepare(preparation.check(new))
    assert any("drawn anew" in note for note in prepared.loaded.notes)
    own = transformers.AutoModelForSequenceClassification.from_pretrained(base).classifier.weight
    drawn = dict(prepared.loaded.model.named_parameters())
    weight = next(v for k, v in drawn.items() if "classifier" in k and v.shape == own.shape)
    assert not torch.equal(weight, own)
    plan_of(configured(base, rows_of("spam", "ham"), tmp_path))  # of another size: new by itself


def test_numbers_need_the_checkpoints_names(tmp_path: Path) -> None:
    base, _ = fine_tuned(tmp_path / "base", "SequenceClassification", OWN)
    with pytest.raises(CheckFailed, match=r"numbers '0', '1', '2': which is which\?.*label_names"):
        plan_of(configured(base, rows_of(0, 1, 2), tmp_path))
    names = ["entailment", "neutral", "contradiction"]
    named = plan_of(configured(base, rows_of(0, 1, 2), tmp_path, label_names=names))
    assert named.checked.splits.label_names == ("neutral", "entailment", "contradiction")
    assert named.checked.splits.train[0]["label"] == "entailment"


def test_a_head_without_names_is_taken_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base, _ = fine_tuned(tmp_path / "base", "SequenceClassification", None)
    with caplog.at_level(logging.WARNING, "peftlab"):
        plan_of(configured(base, rows_of(0, 1, 2), tmp_path))
        assert "names no labels" not in caplog.text
        plan_of(configured(base, rows_of("a", "b", "c"), tmp_path))
    assert "its own head names no labels; its outputs are taken for 'a', 'b', 'c'" in caplog.text


def test_what_is_resumed_keeps_its_order(tmp_path: Path) -> None:
    base, _ = fine_tuned(tmp_path / "base", "SequenceClassification", None)
    config = configured(base, rows_of("l10", "l9", "l8"), tmp_path)
    splits = preparation.check(config).splits
    assert splits.label_names == ("l8", "l9", "l10")
    # A run of a version that sorted by code point has no file.
    assert order_of(splits, config.model, tmp_path) == ("l10", "l8", "l9")
    declared = replace(splits, names_declared=True)
    assert order_of(declared, config.model, tmp_path) == ("l8", "l9", "l10")
    write_order(replace(splits, label_names=("l9", "l10", "l8")), tmp_path)
    assert order_of(splits, config.model, tmp_path) == ("l9", "l10", "l8")
    resumed = preparation.prepare(
        preparation.check(config), weights=False, checkpoint=tmp_path / "checkpoint-1"
    ).checked
    assert resumed.task.head().config["id2label"] == {0: "l9", 1: "l10", 2: "l8"}
    with pytest.raises(ConfigError, match="begun with other labels"):
        order_of(replace(splits, label_names=("l8", "l9", "x")), config.model, tmp_path)
