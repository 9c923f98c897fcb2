"""Inputs that train shares with a held-out split: counted, refused, or taken out of train."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from peftlab.data.formats import FORMATS
from peftlab.data.loading import load_splits
from peftlab.data.splits import Splits
from peftlab.errors import DataError

datasets = pytest.importorskip("datasets")


def write(folder: Path, **splits: list[dict[str, Any]]) -> str:
    for name, rows in splits.items():
        lines = "".join(f"{json.dumps(row)}\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return str(folder)


def load(source: str, form: str = "text-label", **options: Any) -> Splits:
    chosen = FORMATS[form]  # type: ignore[index]
    return load_splits(
        source, formats=(form,), roles=tuple(chosen.roles), validation=0.0, **options
    )


def labelled(*texts: str, label: str | None = None) -> list[dict[str, Any]]:
    return [
        {"text": text, "label": label or ("no", "yes")[at % 2]} for at, text in enumerate(texts)
    ]


TRAIN = labelled("one", "two", "three", "four", "one", "five")


def said(caplog: pytest.LogCaptureFixture, source: str, form: str = "text-label") -> str:
    caplog.clear()
    with caplog.at_level(logging.WARNING, "peftlab"):
        load(source, form)
    return caplog.text


def test_inputs_are_counted_by_their_answers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    test = labelled("two", "new", "three", label="yes")
    text = said(caplog, write(tmp_path, train=TRAIN, test=test))
    assert (
        "test: 2 of 3 inputs (66.7%) are in train too, 1 with the same answer and 1 with another "
        f"answer (such as {tmp_path}/test.jsonl:1 = {tmp_path}/train.jsonl:2: 'two')"
    ) in text
    assert "data.duplicates=drop" in text
    with pytest.raises(DataError, match=r"test: 2 of 3 inputs.*\n.*data\.duplicates to drop"):
        load(str(tmp_path), duplicates="error")


def test_copies_leave_train_and_never_the_other_split(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write(tmp_path, train=TRAIN, test=labelled("ONE", "two", "new", "new"))
    with caplog.at_level(logging.WARNING, "peftlab"):
        splits = load(source, duplicates="drop")
    assert splits.train["text"][:] == ["three", "four", "five"]
    assert splits.get("test")["text"][:] == ["ONE", "two", "new", "new"]
    assert "train: 3 of 6 rows are left out (data.duplicates=drop)" in caplog.text
    lines = [row.location.rsplit(":", 1)[1] for row in splits.dropped]
    assert lines == ["1", "2", "5"]
    assert splits.dropped[0].cause == f"test has the same input: '{tmp_path}/test.jsonl:1'"
    assert splits.location("train", 2) == f"{tmp_path}/train.jsonl:6"


def test_rows_repeated_inside_a_split_are_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write(tmp_path, train=TRAIN * 2, test=labelled("new", "new"))
    assert said(caplog, source) == ""
    assert len(load(source, duplicates="drop").train) == 12
    load(source, duplicates="error")


def test_a_class_that_would_lose_every_row(tmp_path: Path) -> None:
    train = [*labelled("one", "two", "three"), {"text": "rare text", "label": "rare"}]
    source = write(tmp_path, train=train, test=labelled("rare  text"))
    with pytest.raises(DataError, match="every row with the label 'rare' would be left out"):
        load(source, duplicates="drop")


def test_a_validation_drawn_from_train_is_checked_too(tmp_path: Path) -> None:
    rows = labelled(*(f"row {at // 2}" for at in range(40)), label=None)
    source = write(tmp_path, train=rows)
    splits = load_splits(
        source, formats=("text-label",), roles=("text", "label"), validation=0.2,
        duplicates="drop",
    )  # fmt: skip
    assert not set(splits.train["text"]) & set(splits.get("validation")["text"])
    assert len(splits.get("validation")) == 8


def chat(question: str, answer: str, **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **more}


def squad(question: str, text: str) -> dict[str, Any]:
    context = "the cat saw a dog"
    answers = {"text": [text], "answer_start": [context.index(text)]}
    return {"id": question + text, "question": question, "context": context, "answers": answers}


def pair(first: str, second: str, label: str) -> dict[str, Any]:
    return {"text": first, "text_pair": second, "label": label}


def related(text: str, label: str) -> dict[str, Any]:
    return {"text": text, "label": label}


# format: a row, one of the same input and another answer, and rows of other inputs
FORMS: dict[str, tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]] = {
    "pair": (
        pair("a", "b", "x"), pair("a", "b", "y"), [pair("a", "c", "x"), pair("a b", "b", "y")],
    ),
    "tokens-tags": (
        {"tokens": ["a", "b"], "tags": ["O", "B-x"]}, {"tokens": ["A", "b"], "tags": ["O", "O"]},
        [{"tokens": ["a", "c"], "tags": ["O", "B-x"]}, {"tokens": ["a"], "tags": ["O"]}],
    ),
    "squad": (squad("who", "cat"), squad("who", "dog"), [squad("what", "cat"), squad("x", "dog")]),
    "relation": (
        related("<e1>a</e1> <e2>b</e2>", "x"), related("<e1>a</e1> <e2>b</e2>", "y"),
        [related("<e2>a</e2> <e1>b</e1>", "x"), related("<e1>c</e1> <e2>b</e2>", "y")],
    ),
    "prompt-completion": (
        {"prompt": "a", "completion": "x"}, {"prompt": " A ", "completion": "y"},
        [{"prompt": "b", "completion": "x"}, {"prompt": "c", "completion": "x"}],
    ),
    "messages": (
        chat("a  b", "x"), chat("A B", "y"),
        [chat("b", "x"), chat("a b", "x", tools=[{"type": "function", "function": {"name": "f"}}])],
    ),
    "alpaca": (
        {"instruction": "a", "input": "b", "output": "x"},
        {"instruction": "a", "input": "b", "output": "y"},
        [{"instruction": "a", "input": "c", "output": "x"}, {"instruction": "b", "output": "x"}],
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_the_inputs_of_every_format(
    form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row, other, others = FORMS[form]
    source = write(tmp_path, train=[row, *others], test=[row, others[0]])
    text = said(caplog, source, form)
    assert "test: 2 of 2 inputs (100.0%) are in train too, 2 with the same answer (such" in text
    source = write(tmp_path, train=[row, *others], test=[other])
    assert "test: 1 of 1 inputs (100.0%) are in train too, 1 with another answer" in said(
        caplog, source, form
    )
    (tmp_path / "test.jsonl").unlink()
    write(tmp_path, train=[row, others[1]], test=[others[0]])
    assert said(caplog, source, form) == ""
