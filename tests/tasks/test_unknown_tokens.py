"""Rows that are mostly unknown tokens, and classes of very different sizes, are warned of."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from peftlab.data.loading import load_splits
from peftlab.pipeline.encoding import encode_split
from peftlab.tasks.classification.text_classification import TextClassification
from peftlab.tasks.tagging.token_classification import TokenClassification
from peftlab.tasks.unknown_tokens import unknown_shares
from tests.checkpoints import write_tokenizer

datasets = pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, "bert")
    return transformers.AutoTokenizer.from_pretrained(folder)


def write(folder: Path, rows: list[dict[str, Any]]) -> str:
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    (folder / "train.jsonl").write_text(lines, encoding="utf-8")
    return str(folder)


def warned(task: Any, source: str, tokenizer: Any, caplog: Any, roles: tuple[str, ...]) -> str:
    form = "tokens-tags" if "tags" in roles else "text-label"
    splits = load_splits(source, formats=(form,), roles=roles, validation=0.0)
    made = task.from_splits(splits, task.options(name=task.options.tag()))
    caplog.clear()
    with caplog.at_level(logging.WARNING, "peftlab"):
        encode_split(
            made, splits, "train", tokenizer, max_length=8, packing=False, on_disk=False,
            on_bad_rows="error",
        )  # fmt: skip
    return str(caplog.text)


def test_shares_leave_special_tokens_aside(tokenizer: Any) -> None:
    unknown, known = tokenizer.unk_token_id, tokenizer.convert_tokens_to_ids("good")
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    rows = [[cls, unknown, sep], [cls, known, unknown, sep], [cls, known, sep], [], [cls, sep]]
    encoded = datasets.Dataset.from_dict({"input_ids": rows})
    assert unknown_shares(encoded, tokenizer).tolist() == [1.0, 0.5, 0.0, 0.0, 0.0]
    # Byte-level vocabularies have no such token.
    complete = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, pad_token="[PAD]"
    )
    assert np.array_equal(unknown_shares(encoded, complete), np.zeros(5))


def test_texts_in_another_script_are_shown_with_their_line(
    tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"text": "a good film", "label": "a"}, {"text": "a bad film", "label": "b"}] * 3
    source = write(tmp_path, rows)
    roles = ("text", "label")
    assert warned(TextClassification, source, tokenizer, caplog, roles) == ""
    write(tmp_path, [*rows, {"text": "хороший фильм", "label": "a"}])
    text = warned(TextClassification, source, tokenizer, caplog, roles)
    assert "train: 1 of 7 rows (14.3 %) are mostly unknown tokens ([UNK])" in text
    assert f"{tmp_path}/train.jsonl:7 ('хороший фильм')" in text


def test_windows_name_their_row(
    tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        {"tokens": ["good"] * 20, "tags": ["O", "B-x"] * 10},
        {"tokens": ["фильм"] * 3, "tags": ["O", "B-x", "O"]},
    ]
    text = warned(TokenClassification, write(tmp_path, rows), tokenizer, caplog, ("tokens", "tags"))
    assert f"{tmp_path}/train.jsonl:2" in text


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"no": 50, "yes": 4}, "'no' has 50 training rows and 'yes' has 4"),
        ({"no": 40, "yes": 6}, "always answering 'no' is right for 87.0 %"),
        ({"no": 30, "yes": 10}, None),
        ({"a": 30, "b": 25, "c": 3}, "task.class_weights=balanced"),
        ({"a": 30, "b": 25, "c": 4}, None),
    ],
)
def test_imbalanced_classes(
    counts: dict[str, int], said: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        {"text": f"film {at}", "label": name} for name, count in counts.items()
        for at in range(count)
    ]  # fmt: skip
    splits = load_splits(
        write(tmp_path, rows), formats=("text-label",), roles=("text", "label"), validation=0.0
    )
    options = TextClassification.options
    with caplog.at_level(logging.WARNING, "peftlab"):
        TextClassification.from_splits(splits, options(name="text-classification"))
        text = caplog.text
        caplog.clear()
        TextClassification.from_splits(
            splits, options(name="text-classification", class_weights="balanced")
        )
    assert "imbalanced" not in caplog.text
    if said is None:
        assert "imbalanced" not in text
    else:
        assert said in text
        assert "eval.best=f1_macro" in text
