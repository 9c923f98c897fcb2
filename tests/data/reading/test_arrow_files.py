"""Arrow's files and folders, written by their own libraries and read back equal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from pyarrow import feather, parquet

from peftlab.config.reader import ReaderConfig
from peftlab.data.loading import load_splits
from peftlab.data.reading.data_file import data_file
from peftlab.data.reading.readers import open_path, open_splits
from peftlab.errors import DataError

ROWS = [{"text": f"row {i} å", "label": i % 2, "tags": ["a", None]} for i in range(2500)]
TABLE = pa.Table.from_pylist(ROWS)


def write_stream(table: pa.Table, path: str) -> None:
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, 1700)


def write_file(table: pa.Table, path: str) -> None:
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, 1700)


WRITERS: dict[str, Callable[[pa.Table, str], Any]] = {
    "rows.parquet": parquet.write_table,
    "rows.feather": feather.write_feather,
    "rows.arrow": write_stream,
    "rows.ipc": write_file,
    "misnamed.csv": write_file,
}


@pytest.mark.parametrize("name", WRITERS)
def test_files_of_columns(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    WRITERS[name](TABLE, str(path))
    opened = open_path(path)
    assert opened.columns == ("text", "label", "tags")
    assert [row for _, row in opened.rows(opened.columns)] == ROWS
    assert next(iter(opened.rows(["label"]))) == (1, {"label": 0})
    WRITERS[name](TABLE.slice(0, 0), str(path))
    with pytest.raises(DataError, match=r"has no rows"):
        open_path(path)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"(is not a|cannot be) read(able \w+ file)?"):
        list(open_path(path).rows(["text"]))


def test_folders_of_save_to_disk(tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    plain = [{"text": row["text"], "label": row["label"]} for row in ROWS]
    rows = datasets.Dataset.from_list(plain, features)
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": rows, "test": rows.select(range(4))}).save_to_disk(
        str(tmp_path / "splits")
    )
    (opened,) = open_splits(data_file(tmp_path / "one"), ReaderConfig()).values()
    assert [row for _, row in opened.rows(opened.columns)] == plain
    reads: dict[str, Any] = {"formats": ("text-label",), "roles": ("text", "label")}
    splits = load_splits(str(tmp_path / "splits"), **reads, validation=0)
    assert splits.label_names == ("neg", "pos")
    assert splits.test is not None
    assert (len(splits.train), len(splits.test)) == (2500, 4)
    assert len(load_splits(str(tmp_path / "one"), **reads, validation=0).train) == 2500
    for path in (tmp_path / "one").glob("*.arrow"):
        path.unlink()
    with pytest.raises(DataError, match="written by save_to_disk and cannot be loaded"):
        load_splits(str(tmp_path / "one"), **reads)
