"""Each row of the documentation's table of files is read by a test."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas
import pyarrow as pa
import pytest
from pyarrow import feather, parquet

from peftlab.data.loading import load_splits
from peftlab.data.reading.readers import READERS, extensions
from peftlab.data.source import Source
from tests.conftest import REPOSITORY
from tests.data.reading.test_readers import COMPRESS
from tests.data.reading.workbooks import ods, xlsx

ROWS = [{"text": f"row {i}, å", "label": "ab"[i % 2]} for i in range(6)]
FRAME = pandas.DataFrame(ROWS)
TABLE = pa.Table.from_pylist(ROWS)
CELLS = [["text", "label"], *([row["text"], row["label"]] for row in ROWS)]


def write(name: str, content: str | bytes) -> Callable[[Path], Source]:
    def make(folder: Path) -> Source:
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return Source(str(path))

    return make


def options(make: Callable[[Path], Source], columns: dict[str, str] | None = None, **keys: Any
            ) -> Callable[[Path], Source]:  # fmt: skip
    from peftlab.config.reader import ReaderConfig

    return lambda folder: Source(
        make(folder).place, columns=columns or {}, reader=ReaderConfig(**keys)
    )


def pandas_json(orient: Any) -> Callable[[Path], Source]:
    return write("rows.json", FRAME.to_json(orient=orient))


def saved(folder: Path) -> Source:
    rows = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": rows}).save_to_disk(str(folder / "saved"))
    return Source(str(folder / "saved"))


def arrow(folder: Path) -> Source:
    feather.write_feather(TABLE, str(folder / "rows.feather"))
    return Source(str(folder / "rows.feather"))


def repository(folder: Path) -> Source:
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: data/*.csv\n---\n"
    )
    (folder / "data").mkdir()
    (folder / "data" / "rows.csv").write_text(FRAME.to_csv(index=False))
    return Source(str(folder))


def archive(folder: Path) -> Source:
    with zipfile.ZipFile(folder / "rows.zip", "w") as opened:
        opened.writestr("train.csv", FRAME.to_csv())
    return Source(str(folder / "rows.zip"))


def parquet_bytes() -> bytes:
    sink = io.BytesIO()
    parquet.write_table(TABLE, sink)
    return sink.getvalue()


LINES = FRAME.to_json(orient="records", lines=True)
CASES: dict[str, Callable[[Path], Source]] = {
    "Comma, semicolon, tab or bar separated": write("rows.csv", FRAME.to_csv(sep=";")),
    "Without a header": options(
        write("rows.csv", FRAME.to_csv(index=False, header=False)),
        {"text": "1", "label": "2"}, header=False,
    ),
    "JSON lines": write("rows.jsonl", LINES),
    "JSON list of rows": pandas_json("records"),
    "JSON objects one after the other": write(
        "rows.json", "\n".join(json.dumps(row, indent=1) for row in ROWS)
    ),
    "JSON columns": write("rows.json", json.dumps(FRAME.to_dict(orient="list"))),
    "JSON of pandas: `split`": pandas_json("split"),
    "JSON of pandas: `columns`": pandas_json("columns"),
    "JSON of pandas: `index`": pandas_json("index"),
    "JSON of pandas: `table`": pandas_json("table"),
    "JSON of pandas: `values`": options(
        pandas_json("values"), {"text": "1", "label": "2"}, header=False
    ),
    "JSON with splits inside": write("rows.json", json.dumps({"train": ROWS})),
    "Lines of text": write("rows.txt", "\n".join(row["text"] for row in ROWS)),
    "Parquet": write("rows.parquet", parquet_bytes()),
    "Arrow, feather": arrow,
    "Workbook": write("rows.xlsx", xlsx({"Sheet1": CELLS})),
    "OpenDocument sheet": write("rows.ods", ods({"Sheet1": CELLS})),
    "Folder of `save_to_disk`": saved,
    "gz": write("rows.jsonl.gz", gzip.compress(LINES.encode())),
    "bz2": write("rows.jsonl.bz2", COMPRESS[".bz2"](LINES.encode())),
    "xz": write("rows.jsonl.xz", COMPRESS[".xz"](LINES.encode())),
    "zst": write("rows.jsonl.zst", COMPRESS[".zst"](LINES.encode())),
    "Zip archive": archive,
    "Downloaded hub repository": repository,
}  # fmt: skip


def documented(heading: str = "## Files") -> list[list[str]]:
    """The cells of a table of files in docs/data.md."""
    text = (REPOSITORY / "docs" / "data.md").read_text(encoding="utf-8")
    section = text.split(f"\n{heading}\n")[1].split("\n#")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_and_the_cases_are_the_same() -> None:
    rows = documented()
    assert [row[0] for row in rows] == list(CASES)
    rows += documented("### Annotated text")
    ends = {end.strip("` ") for row in rows for end in row[1].split(",") if end.strip()}
    assert set(extensions()) <= ends
    named = {name.strip("` ") for row in rows for name in row[2].split(",") if name.strip()}
    assert set(READERS) == named


@pytest.mark.parametrize("form", CASES)
def test_each_row_of_the_table_is_read(form: str, tmp_path: Path) -> None:
    text_only = form == "Lines of text"
    splits = load_splits(
        CASES[form](tmp_path),
        formats=("text",) if text_only else ("text-label",),
        roles=("text",) if text_only else ("text", "label"),
        validation=0,
    )
    wanted = [{"text": row["text"]} if text_only else row for row in ROWS]
    assert splits.train.to_list() == wanted
