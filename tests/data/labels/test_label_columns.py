"""A column a label, named or found."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from peftlab.data.loading import load_splits
from peftlab.errors import ConfigError, DataError

READS: dict[str, Any] = {
    "formats": ("pair", "text-label"), "roles": ("text", "text_pair", "label"), "validation": 0,
    "label_kind": "auto",
}  # fmt: skip
NAMES = ("toxic", "insult", "threat")
TRUTH = [["toxic", "insult"], [], ["threat"], ["toxic", "threat"], ["insult"]]
SPELT = {
    "0 and 1": ("0", "1"), "fractions": ("0.0", "1.0"), "true": ("False", "true"),
    "yes": ("no", "Yes"), "letters": ("n", "y"),
}  # fmt: skip


def write(folder: Path, spelling: str = "0 and 1", name: str = "train", **extra: str) -> None:
    no, yes = SPELT[spelling]
    lines = [",".join([*extra, "text", *NAMES])]
    lines += [
        ",".join([*extra.values(), f"t{i}", *(yes if label in row else no for label in NAMES)])
        for i, row in enumerate(TRUTH)
    ]
    (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("spelling", SPELT)
def test_columns_are_found(spelling: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, spelling)
    with caplog.at_level(logging.INFO, "peftlab"):
        splits = load_splits(str(tmp_path), **READS)
    assert (splits.label_kind, splits.label_names) == ("many", NAMES)
    assert splits.train["label"] == TRUTH
    assert "toxic, insult, threat hold only 0 and 1" in caplog.text
    assert "0 on 1, 1 on 2, 2 on 2 of 5 training rows" in splits.understood


def test_columns_of_numbers_in_json(tmp_path: Path) -> None:
    rows = [{"text": "a", **{n: n in row for n in NAMES}, "id": 7} for row in TRUTH]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = load_splits(str(tmp_path), **READS)
    assert splits.train["label"] == TRUTH


def test_columns_are_named(tmp_path: Path) -> None:
    write(tmp_path, source="web")
    write(tmp_path, name="test", source="web")
    named = load_splits(str(tmp_path), **READS, columns={"label": ["threat", "toxic"]})
    assert named.label_names == ("threat", "toxic")
    assert named.train["label"] == [["toxic"], [], ["threat"], ["threat", "toxic"], []]
    assert named.get("test")["label"] == named.train["label"]
    assert named.columns["label"] == "threat + toxic"


def test_one_of_the_columns_a_row_is_one_label(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,pos,neg\na,1,0\nb,0,1\nc,1,0\n")
    one = load_splits(str(tmp_path), **READS)
    assert (one.label_kind, one.train["label"]) == ("one", ["pos", "neg", "pos"])
    assert "one a row" in one.understood
    many = load_splits(str(tmp_path), **{**READS, "label_kind": "many"})
    assert many.train["label"] == [["pos"], ["neg"], ["pos"]]


def test_a_test_row_with_two_where_train_has_one(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,pos,neg\na,1,0\nb,0,1\nc,1,0\n")
    (tmp_path / "test.csv").write_text("text,pos,neg\na,1,1\n")
    with pytest.raises(DataError, match=r"test\.csv:2: .*2 labels.*task\.problem=multi_label"):
        load_splits(str(tmp_path), **READS)


def test_other_columns_are_not_taken(tmp_path: Path) -> None:
    write(tmp_path, votes="4")
    with pytest.raises(DataError, match="no column for 'label'"):
        load_splits(str(tmp_path), **READS)
    (tmp_path / "train.csv").write_text("text,a,b,label\nx,0,1,good\ny,1,1,bad\n")
    assert load_splits(str(tmp_path), **READS).train["label"] == ["good", "bad"]


def test_columns_that_are_wrong(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(DataError, match=r"no column 'toxi'.*did you mean toxic\?"):
        load_splits(str(tmp_path), **READS, columns={"label": ["toxi", "threat"]})
    with pytest.raises(ConfigError, match="names the column 'toxic' twice"):
        load_splits(str(tmp_path), **READS, columns={"label": ["toxic", "toxic"]})
    with pytest.raises(ConfigError, match="fewer than two"):
        load_splits(str(tmp_path), **READS, columns={"label": ["toxic"]})
    with pytest.raises(ConfigError, match=r"data\.columns\.text is a list"):
        load_splits(str(tmp_path), **READS, columns={"text": ["toxic", "text"]})
    (tmp_path / "train.csv").write_text("text,a,b\nx,0,1\ny,2,1\nz,1,1\n")
    with pytest.raises(DataError, match=r"train\.csv:3: .* not yes or no"):
        load_splits(str(tmp_path), **READS, columns={"label": ["a", "b"]})
