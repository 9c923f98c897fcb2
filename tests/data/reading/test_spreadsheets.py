"""Workbooks: cells as a sheet shows them, sheets as splits or as a question."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftlab.config.reader import ReaderConfig
from peftlab.data.reading.data_file import data_file
from peftlab.data.reading.readers import open_path, open_splits
from peftlab.errors import DataError
from tests.data.reading.workbooks import Cell, ods, xlsx

TABLE: list[list[Cell]] = [["text", "label"], ["å & b\nc", 1], [' "q", ', 0]]
ROWS = [{"text": "å & b\nc", "label": "1"}, {"text": ' "q", ', "label": "0"}]


def rows_of(path: Path, **options: object) -> list[dict[str, object]]:
    opened = open_path(path, ReaderConfig(**options))  # type: ignore[arg-type]
    return [row for _, row in opened.rows(opened.columns)]


@pytest.mark.parametrize("name", ["rows.xlsx", "rows.csv", "rows.whatever"])
def test_a_sheet_is_read_by_its_content(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(xlsx({"Sheet1": TABLE, "Sheet2": []}))
    assert rows_of(tmp_path / name) == ROWS
    opened = open_path(tmp_path / name)
    assert opened.location(2) == f"{tmp_path / name} [Sheet1], row 2"


def test_open_document(tmp_path: Path) -> None:
    (tmp_path / "rows.ods").write_bytes(ods({"a": [["text", "label"], ["x", 1], ["y", 2.5]]}))
    assert rows_of(tmp_path / "rows.ods") == [
        {"text": "x", "label": "1"}, {"text": "y", "label": "2.5"}
    ]  # fmt: skip


def test_cells_are_what_the_sheet_shows(tmp_path: Path) -> None:
    path = tmp_path / "rows.xlsx"
    cells: list[Cell] = [3.0, 0.1 + 0.2, 45000, True, None, "007", "", 12345678901, "#N/A"]
    header: list[Cell] = [f"c{i}" for i in range(len(cells))]
    path.write_bytes(xlsx({"s": [header, cells]}, dated="C"))
    (row,) = rows_of(path)
    assert list(row.values()) == [
        "3", "0.3", "2023-03-15", "TRUE", "", "007", "", "12345678901", ""
    ]  # fmt: skip


def test_blank_rows_indices_and_nameless_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.xlsx"
    rows: list[list[Cell]] = [[None, "text", None], [0, "a", None], [], [1, "b", None]]
    path.write_bytes(xlsx({"s": [[], *rows]}))
    opened = open_path(path)
    assert opened.columns == ("text",)
    assert [(n, r["text"]) for n, r in opened.rows(["text"])] == [(3, "a"), (5, "b")]
    assert rows_of(path, header=False)[0] == {"1": "", "2": "text"}


def test_several_sheets(tmp_path: Path) -> None:
    path = tmp_path / "rows.xlsx"
    other: list[list[Cell]] = [["text", "label"], ["z", 1]]
    path.write_bytes(xlsx({"train": TABLE, "Test": other, "notes": []}))
    splits = open_splits(data_file(path), ReaderConfig())
    assert list(splits) == ["train", "Test"]
    path.write_bytes(xlsx({"train": TABLE, "notes": other}))
    with pytest.raises(DataError, match=r"several sheets .*train, notes.*data\.reader\.sheet"):
        rows_of(path)
    assert rows_of(path, sheet="notes") == [{"text": "z", "label": "1"}]
    assert rows_of(path, sheet=2) == rows_of(path, sheet="notes")
    with pytest.raises(DataError, match=r"no sheet 'note'.*train, notes"):
        rows_of(path, sheet="note")
    with pytest.raises(DataError, match="has 2 sheets"):
        rows_of(path, sheet=3)
    path.write_bytes(xlsx({"train": TABLE, "notes": other}, hidden=["notes"]))
    assert rows_of(path) == ROWS


def test_workbooks_without_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.xlsx"
    for sheets, said in (({"s": []}, "every sheet is empty"), ({"s": TABLE[:1]}, "only a header")):
        path.write_bytes(xlsx(sheets))
        with pytest.raises(DataError, match=said):
            rows_of(path)
    path.write_bytes(xlsx({"s": TABLE})[:300])
    with pytest.raises(DataError, match=r"rows\.xlsx is not a readable workbook"):
        rows_of(path)
