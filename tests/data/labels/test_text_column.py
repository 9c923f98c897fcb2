"""Numbers beside a column of their names, as SetFit's data sets have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftlab.data.loading import load_splits

READS: dict[str, Any] = {
    "formats": ("pair", "text-label"), "roles": ("text", "text_pair", "label"), "validation": 0,
    "label_kind": "auto",
}  # fmt: skip


def load(folder: Path, pairs: list[tuple[Any, Any]], **options: Any) -> Any:
    rows = [{"text": f"t{i}", "label": n, "label_text": name} for i, (n, name) in enumerate(pairs)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_splits(str(folder), **READS, **options)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("kind", [int, str])
def test_names_in_the_order_of_the_numbers(first: int, kind: type, tmp_path: Path) -> None:
    pairs = [(kind(first + 1), "bad"), (kind(first), "worse"), (kind(first + 3), "good")]
    splits = load(tmp_path, pairs * 2)
    assert splits.label_names == ("worse", "bad", "good")
    assert splits.train["label"] == ["bad", "worse", "good"] * 2


def test_a_column_that_is_no_name_is_not_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits = load(tmp_path, [(0, "x"), (1, "y"), (0, "z")])
    assert splits.label_names == ("0", "1")
    assert "'label_text' does not name the labels" in caplog.text


def test_labels_that_are_names_already(tmp_path: Path) -> None:
    assert load(tmp_path, [("neg", "no"), ("pos", "yes")]).label_names == ("neg", "pos")


def test_declared_names_come_first(tmp_path: Path) -> None:
    pairs = [(0, "x"), (1, "y")]
    assert load(tmp_path, pairs, label_names=["a", "b"]).train["label"] == ["a", "b"]
