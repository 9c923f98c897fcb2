"""Rows read one by one: the same rows as otherwise, no more than needed, stored in files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from peftlab.data.column_file import ColumnFile, Columns, columns_on_disk, new_columns
from peftlab.data.loading import load_splits
from peftlab.data.splits import Splits
from peftlab.errors import DataError

datasets = pytest.importorskip("datasets")

READS: dict[str, Any] = {"formats": ("pair", "text-label"), "roles": ("text", "label")}


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of temporary files for this test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def write(folder: Path, count: int, *, broken_at: int | None = None) -> str:
    folder.mkdir(exist_ok=True)
    rows = [
        json.dumps({"text": f"row {i}", "label": i % 2}) if i != broken_at else "{no JSON"
        for i in range(count)
    ]
    (folder / "train.jsonl").write_text("\n".join(rows))
    return str(folder)


def texts(splits: Splits) -> tuple[list[str], list[str]]:
    assert splits.validation is not None
    return list(splits.train["text"]), list(splits.validation["text"])


@pytest.mark.parametrize("validation", ["auto", 0.25])
def test_a_stream_of_everything_is_everything(
    validation: Any, tmp_path: Path, temporary: Path
) -> None:
    source = write(tmp_path / "rows", 2500)
    plain = load_splits(source, **READS, validation=validation)
    streamed = load_splits(source, **READS, validation=validation, streaming=True)
    assert texts(streamed) == texts(plain)
    assert streamed.train["label"] == plain.train["label"]
    assert streamed.label_names == plain.label_names
    # Mapped, and without a name: nothing is left behind.
    assert list(temporary.iterdir()) == []


def test_rows_that_are_not_needed_are_not_read(tmp_path: Path) -> None:
    source = write(tmp_path / "rows", 500, broken_at=120)
    with pytest.raises(DataError, match=r"train.jsonl:121: malformed JSON"):
        load_splits(source, **READS, max_train_samples=90)
    splits = load_splits(source, **READS, max_train_samples=90, streaming=True)
    train, validation = texts(splits)
    assert (len(train), len(validation)) == (90, 10)
    assert {int(text.split()[1]) for text in (*train, *validation)} == set(range(100))


def test_a_set_of_the_hub_is_fetched_as_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[int] = []

    def rows() -> Iterator[dict[str, Any]]:
        for i in range(10**9):
            fetched.append(i)
            yield {"text": f"row {i}", "label": i % 2}

    def load_dataset(name: str, subset: str | None, *, streaming: bool) -> Any:
        assert streaming
        labels = datasets.ClassLabel(names=["no", "yes"])
        features = datasets.Features({"text": datasets.Value("string"), "label": labels})
        stream = datasets.IterableDataset.from_generator(rows, features=features)
        return datasets.IterableDatasetDict({"train": stream})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    splits = load_splits("some/set", **READS, validation=0, max_train_samples=30, streaming=True)
    assert splits.train["text"] == [f"row {i}" for i in range(30)]
    assert splits.train["label"][:2] == ["no", "yes"]
    assert max(fetched) <= 31


def test_a_stream_that_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield {"text": "a", "label": 0}
        yield {"text": "b", "label": 1}
        raise ConnectionError("the line is dead")

    def load_dataset(name: str, subset: str | None, *, streaming: bool) -> Any:
        stream = datasets.IterableDataset.from_generator(rows)
        return datasets.IterableDatasetDict({"train": stream})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        DataError, match=r"some/set \[train\] cannot be read further: the line is dead"
    ):
        load_splits("some/set", **READS, streaming=True)


def test_columns_in_a_file_are_those_in_memory(temporary: Path) -> None:
    batches = [
        {"ids": pa.array([[1], [2, 3]], pa.list_(pa.int32())), "name": pa.array(["a", "b"])},
        {"name": pa.array(["c"]), "ids": pa.array([[]], pa.list_(pa.int32()))},
    ]
    with columns_on_disk():
        in_file = new_columns()
    in_memory = new_columns()
    assert (type(in_file), type(in_memory)) == (ColumnFile, Columns)
    for batch in batches:
        in_file.add(batch)
        in_memory.add(batch)
    assert len(list(temporary.iterdir())) == 1
    actual, expected = in_file.finish(), in_memory.finish()
    assert {n: c.to_pylist() for n, c in actual.items()} == {
        n: c.to_pylist() for n, c in expected.items()
    }
    assert list(temporary.iterdir()) == []
    assert ColumnFile().finish() == {}


def test_as_many_rows_as_the_steps_take(tiny_checkpoint: Any, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from peftlab import pipeline
    from peftlab.config import load_config

    keys = [
        f"model.name={tiny_checkpoint('bert')}", "task=text-classification", "method=lora",
        f"data.source={write(tmp_path / 'rows', 400, broken_at=150)}", "data.streaming=true",
        "train.max_steps=4", "train.global_batch_size=8", f"output.dir={tmp_path / 'run'}",
        "train.save_every=never",
    ]  # fmt: skip
    run = pipeline.train(load_config(None, keys).config)
    assert run.metrics["train"]["steps"] == 4
    assert run.metrics["train"]["epochs"] == pytest.approx(1)
    assert pipeline.open_run(run.folder).evaluate("validation")["loss"] > 0
