from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftlab.data.labels.names import ordered
from peftlab.data.loading import load_splits
from peftlab.errors import ConfigError, DataError

READS: dict[str, Any] = {
    "formats": ("text-label",), "roles": ("text", "label"), "validation": 0, "label_kind": "auto"
}  # fmt: skip


def load(folder: Path, labels: list[Any], **options: Any) -> Any:
    rows = [{"text": f"t{i}", "label": label} for i, label in enumerate(labels)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_splits(str(folder), **READS, **options)


@pytest.mark.parametrize(
    "names",
    [("2", "10"), ("-3", "-1", "2"), ("label_2", "label_10"), ("a", "a1", "a2", "a10", "b"),
     ("B", "a"), ("1 star", "2 stars", "10 stars"), ("x1y2", "x1y10", "x2y1")],
)  # fmt: skip
def test_numbers_in_names_are_numbers(names: tuple[str, ...]) -> None:
    assert ordered(set(names)) == names
    assert ordered(names[::-1]) == names


@pytest.mark.parametrize("labels", [[1, 0, 2], ["1", "0", "2"]])
def test_declared_names_are_those_of_positions(labels: list[Any], tmp_path: Path) -> None:
    assert load(tmp_path, labels, label_names=["a", "b", "c"]).train["label"] == ["b", "a", "c"]
    numbered = load(tmp_path, [2, 3, 4], label_names=["2", "3", "4"])
    assert numbered.train["label"] == ["2", "3", "4"]


def test_numbers_that_may_be_names_or_positions(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="may be names or positions"):
        load(tmp_path, [1, 0, 1], label_names=["1", "0"])


def test_positions_of_a_class_label(tmp_path: Path) -> None:
    import datasets

    label = datasets.ClassLabel(names=["1", "0"])
    features = datasets.Features({"text": datasets.Value("string"), "label": label})
    rows = {"text": ["a", "b", "c"], "label": [0, 1, 0]}
    datasets.Dataset.from_dict(rows, features).to_parquet(str(tmp_path / "train.parquet"))
    assert load_splits(str(tmp_path), **READS).train["label"] == ["1", "0", "1"]


def test_a_label_that_is_not_declared(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'positve' is not among .*did you mean positive\?"):
        load(tmp_path, ["positve", "negative"], label_names=["negative", "positive"])
    with pytest.raises(DataError, match=r"label 2 is out of range; data\.label_names names 2"):
        load(tmp_path, [0, 2], label_names=["a", "b"])


def test_a_name_twice(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.label_names names 'a' twice"):
        load(tmp_path, [0, 1], label_names=["a", "a"])


def test_places_take_declared_names(tmp_path: Path) -> None:
    splits = load(tmp_path, [[1, 1, 0], [0, 0, 1], [0, 0, 0]], label_names=["x", "y", "z"])
    assert splits.train["label"] == [["x", "y"], ["z"], []]
    with pytest.raises(DataError, match=r"0 or 1 for each of 3 labels, but .* names 2"):
        load(tmp_path, [[1, 1, 0], [0, 0, 1]], label_names=["x", "y"])
    (tmp_path / "labels.json").write_text('["p", "q", "r"]')
    assert load(tmp_path, [[1, 1, 0], [0, 0, 1]]).train["label"] == [["p", "q"], ["r"]]
