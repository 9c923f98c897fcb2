"""JSON: lines or a document, whatever the name; tables in every orientation; splits inside."""

from __future__ import annotations

import json
from pathlib import Path

import pandas
import pytest

from peftlab.config.reader import ReaderConfig
from peftlab.data.reading.data_file import data_file
from peftlab.data.reading.readers import open_path, open_splits
from peftlab.errors import DataError

ROWS = [{"text": f"row {i} å", "label": i % 2, "tags": ["a", None]} for i in range(4)]
FRAME = pandas.DataFrame(ROWS)


def rows_of(path: Path, content: str, **options: object) -> list[dict[str, object]]:
    path.write_text(content)
    opened = open_path(path, ReaderConfig(**options))  # type: ignore[arg-type]
    return [row for _, row in opened.rows(opened.columns)]


def refused(path: Path, content: str, *named: str, **options: object) -> None:
    with pytest.raises(DataError) as caught:
        rows_of(path, content, **options)
    message = str(caught.value)
    assert [part for part in named if part not in message] == [], message


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize("orient", ["records", "split", "columns", "index", "table"])
def test_what_pandas_writes(orient: str, name: str, tmp_path: Path) -> None:
    if orient in ("columns", "index", "split", "table") and name == "rows.jsonl":
        content = json.dumps(json.loads(FRAME.to_json(orient=orient)), indent=1)
    else:
        content = FRAME.to_json(orient=orient)
    assert rows_of(tmp_path / name, content) == ROWS


def test_values_alone_are_a_question(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    values = FRAME.to_json(orient="values")
    refused(path, values, "lists of fields", "data.reader.header=true", "=false")
    assert rows_of(path, values, header=False)[1] == {"1": "row 1 å", "2": 1, "3": ["a", None]}
    with_names = json.dumps([list(ROWS[0]), *json.loads(values)])
    assert rows_of(path, with_names, header=True) == ROWS
    lines = "\n".join(json.dumps(row) for row in json.loads(with_names))
    assert rows_of(tmp_path / "rows.jsonl", lines, header=True) == ROWS
    refused(tmp_path / "rows.jsonl", lines, "rows.jsonl:1 holds lists of fields")


CONTENTS = {
    "lines": "\n".join(map(json.dumps, ROWS)),
    "lines of pandas": FRAME.to_json(orient="records", lines=True),
    "indented": json.dumps(ROWS, indent=2),
    "one after the other": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "columns of lists": FRAME.to_dict(orient="list"),
    "in data": {"version": "1.0", "data": ROWS},
    "in rows": {"rows": ROWS, "count": 4},
    "ids": {f"id-{row['text']}": row for row in ROWS},
}


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize("form", CONTENTS)
def test_forms(form: str, suffix: str, tmp_path: Path) -> None:
    content = CONTENTS[form]
    text = content if isinstance(content, str) else json.dumps(content, indent=1)
    assert rows_of(tmp_path / f"rows.{suffix}", text) == ROWS


def test_splits_inside(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    columns = FRAME.to_dict(orient="list")
    for content in ({"train": ROWS, "dev": ROWS[:1], "about": "words"}, {"train": columns}):
        path.write_text(json.dumps(content))
        splits = open_splits(data_file(path), ReaderConfig())
        assert list(splits) == [name for name in content if name != "about"]
        for name, opened in splits.items():
            wanted = ROWS if name == "train" else ROWS[:1]
            assert [row for _, row in opened.rows(opened.columns)] == wanted
    path.write_text(json.dumps({"train": ROWS, "test": ROWS}))
    assert (
        open_splits(data_file(path), ReaderConfig())["test"]
        .location(2)
        .endswith("rows.json [test], row 2")
    )
    with pytest.raises(DataError, match="holds several splits, train, test"):
        open_path(path)


def test_one_row_a_line_is_a_row(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    for name in ("rows.json", "rows.jsonl"):
        assert rows_of(tmp_path / name, json.dumps(row)) == [row]


def test_what_is_no_table(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    refused(path, json.dumps({"cats": ROWS, "dogs": ROWS}), "several tables", "cats, dogs")
    refused(path, '{"text": ["a"],\n"label": [1, 2]}', "different lengths", "text: 1, label: 2")
    twice = {"a": {"x": "1", "y": "2"}, "b": {"x": "3", "y": "4"}}
    refused(path, json.dumps(twice, indent=1), "columns x, y", "a, b", "records")
    refused(path, '["a", {"text": "b"}]', "row 1 is the value 'a'")
    refused(path, '[{"text": "b"}, ["a"]]', "row 2 is a list")
    refused(path, '[["a", 1], ["b"]]', "row 2 has 1 fields", header=False)
    refused(path, '{"text": 1} {"text": 2', "rows.json:1", "Extra data")
    refused(path, '[{"text": "a', "Unterminated string starting at column 11")
    refused(path, "3", "holds the value 3")
