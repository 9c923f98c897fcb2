"""Words for a missing label are no classes, unless they are frequent enough to be one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftlab.data.loading import load_splits
from peftlab.errors import DataError

READS: dict[str, Any] = {
    "formats": ("pair", "text-label"), "roles": ("text", "text_pair", "label"), "validation": 0,
    "label_kind": "auto",
}  # fmt: skip


def load(folder: Path, labels: list[Any], **options: Any) -> Any:
    rows = [{"text": f"t{i}", "label": label} for i, label in enumerate(labels)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_splits(str(folder), **{**READS, **options})


@pytest.mark.parametrize("word", ["nan", "NaN", "<NA>", "null", "NULL", "#N/A", "", None])
@pytest.mark.parametrize("often", [1, 20])
def test_what_libraries_write_is_never_a_class(
    word: str | None, often: int, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"missing") as refused:
        load(tmp_path, ["a", "b"] * 20 + [word] * often)
    assert "train.jsonl:41" in str(refused.value)
    kept = load(tmp_path, ["a", "b"] * 20 + [word] * often, on_bad_rows="drop")
    assert kept.label_names == ("a", "b")
    assert len(kept.train) == 40


@pytest.mark.parametrize("word", ["-", "?", "N/A", "None", "none", "NA"])
def test_a_rare_word_is_a_missing_label(word: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.jsonl:61: .*the label is missing"):
        load(tmp_path, ["a", "b", "c"] * 20 + [word])


@pytest.mark.parametrize("word", ["-", "?", "N/A", "None", "NA"])
def test_a_frequent_word_is_asked_about(word: str, tmp_path: Path) -> None:
    labels = ["a", "b", word] * 8
    with pytest.raises(DataError, match=r"in 8 of 24 rows: a class, or no label\?.*label_names"):
        load(tmp_path, labels)
    as_class = load(tmp_path, labels, label_names=["a", "b", word])
    assert as_class.label_names == ("a", "b", word)
    as_missing = load(tmp_path, labels, label_names=["a", "b"], on_bad_rows="drop")
    assert as_missing.train["label"] == ["a", "b"] * 8


@pytest.mark.parametrize("word", ["none", "NONE"])
def test_none_as_a_class_is_said(
    word: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits = load(tmp_path, ["against", "favor", word] * 8)
    assert set(splits.label_names) == {"against", "favor", word}
    assert f"{word!r}, in 8 of 24 rows, is read as a class" in caplog.text


@pytest.mark.parametrize(
    "labels",
    [[0, 1, 2] * 30 + [-1], ["0", "1"] * 30 + ["-1"], [0, 1, 2, -1] * 8, [-1, 0] * 4,
     [0, 1] * 40 + [-1]],
)  # fmt: skip
def test_minus_one_beside_classes_is_asked_about(labels: list[Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds -1 in .*a class, or no label"):
        load(tmp_path, labels)


@pytest.mark.parametrize(
    "labels", [[-1, 1] * 4, [-1, 0, 1] * 4, [-2, -1, 0, 1, 2] * 3, [-1, 9, 10]]
)
def test_minus_one_as_people_use_it(labels: list[int], tmp_path: Path) -> None:
    assert load(tmp_path, labels).label_names == tuple(map(str, sorted(set(labels))))


def test_minus_one_with_names_is_missing(tmp_path: Path) -> None:
    names = ["no", "yes"]
    kept = load(tmp_path, [0, 1, -1, 1], label_names=names, on_bad_rows="drop")
    assert kept.train["label"] == ["no", "yes", "yes"]
    signs = load(tmp_path, [0, 1, -1], label_names=["-1", "0", "1"])
    assert signs.train["label"] == ["0", "1", "-1"]


def test_a_test_split_without_labels_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "test.jsonl").write_text('{"text": "a", "label": -1}\n{"text": "b", "label": -1}\n')
    splits = load(tmp_path, [0, 1] * 4)
    assert splits.test is None
    assert "no row has a label" in caplog.text


def test_a_relation_may_be_none(tmp_path: Path) -> None:
    rows = [{"text": "<e1>a</e1> <e2>b</e2>", "label": label} for label in ["NA", "born", "NA"] * 4]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = load_splits(
        str(tmp_path), formats=("relation",), roles=("text", "head", "tail", "label"), validation=0
    )
    assert splits.label_names == ("NA", "born")
