"""Bad rows: grouped by cause, named by their line, or left out with a record."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftlab.data.bad_rows import (
    LEAVE_OUT,
    BadRows,
    Causes,
    DroppedRow,
    counts_of,
    write_dropped,
)
from peftlab.data.loading import load_splits
from peftlab.data.splits import Splits
from peftlab.errors import DataError

datasets = pytest.importorskip("datasets")

CLASSIFY: dict[str, Any] = {
    "formats": ("pair", "text-label"), "roles": ("text", "text_pair", "label")
}  # fmt: skip


def good(number: int) -> dict[str, Any]:
    return {"text": f"row {number}", "label": ("no", "yes")[number % 2]}


def write(folder: Path, name: str, rows: list[Any]) -> None:
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def load(folder: Path, **options: Any) -> Splits:
    return load_splits(str(folder), **{**CLASSIFY, "validation": 0.0, **options})


BAD = {
    "null": ({"text": None, "label": "no"}, "column 'text' is null"),
    "number": ({"text": 3, "label": "no"}, "column 'text' holds 3 (an integer)"),
    "no label": ({"text": "a", "label": None}, "label column 'label' is null"),
    "a list for a label": ({"text": "a", "label": {"a": 1}}, "label column 'label' holds objects"),
    "empty": ({"text": " ", "label": "no"}, "column 'text' is empty"),
}


class TestCauses:
    def test_rows_that_differ_in_a_value_have_one_cause(self) -> None:
        causes = Causes()
        for number in range(40):
            causes.add(f"column 'text' holds {number}, not text", lambda n=number: f"f:{n}")
        causes.add("column 'label' holds 'it\\'s', not text", lambda: "f:99")
        causes.add("column 'label' holds \"it's\", not text", lambda: "f:100")
        assert causes.lines() == [
            "f:0, f:1, f:2 and 37 more: column 'text' holds 0, not text",
            "f:99, f:100: column 'label' holds 'it\\'s', not text",
        ]
        assert causes.count == 42

    def test_a_message_has_ten_lines_at_most(self) -> None:
        reasons = {at: f"{letter} is wrong" for at, letter in enumerate("abcdefghijkl" * 2)}
        message = str(BadRows(reasons).located(lambda at: f"f:{at}", 100))
        assert len(message.splitlines()) == 10
        assert message.splitlines()[8:] == ["... and 4 other causes in 8 rows.", LEAVE_OUT]

    def test_nothing_is_offered_where_every_row_is_bad(self) -> None:
        bad = BadRows({0: "wrong", 1: "wrong"})
        assert str(bad) == "row 1, row 2: wrong"
        assert str(bad.located(lambda at: f"f:{at + 3}", 2)) == "f:3, f:4: wrong"

    @given(st.lists(st.sampled_from(["a", "b 1", "b 2", "column 'c' x", "column 'd' x"])))
    def test_every_row_is_counted(self, whats: list[str]) -> None:
        causes = Causes()
        for what in whats:
            causes.add(what, lambda: "here")
        assert causes.count == len(whats)
        assert len(causes.lines()) == len({what[:1] if what[0] == "b" else what for what in whats})


class TestDropping:
    @pytest.mark.parametrize("case", BAD)
    def test_a_bad_row_is_left_out_and_recorded(
        self, case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        row, cause = BAD[case]
        write(tmp_path, "train", [good(0), good(1), row, good(2), good(3)])
        write(tmp_path, "test", [good(4), row])
        with pytest.raises(DataError) as stopped:
            load(tmp_path)
        assert str(stopped.value).startswith(f"{tmp_path}/train.jsonl:3: {cause}")
        with caplog.at_level(logging.WARNING, "peftlab"):
            splits = load(tmp_path, on_bad_rows="drop")
        assert splits.train["text"][:] == ["row 0", "row 1", "row 2", "row 3"]
        assert splits.train["label"][:] == ["no", "yes", "no", "yes"]
        assert splits.get("test")["text"][:] == ["row 4"]
        places = [(one.split, one.location) for one in splits.dropped]
        assert places == [
            ("train", f"{tmp_path}/train.jsonl:3"), ("test", f"{tmp_path}/test.jsonl:2")
        ]  # fmt: skip
        for one in splits.dropped:
            assert one.cause.startswith(cause)
            assert one.row["text"] == row["text"]
            assert one.row["label"] == row["label"]
        assert "train: 1 of 5 rows are left out" in caplog.text
        assert "test: 1 of 2 rows are left out" in caplog.text
        assert "its metrics are those of the other rows" in caplog.text
        # The places of the rows that stay are those of the file.
        assert splits.location("train", 2) == f"{tmp_path}/train.jsonl:4"

    def test_labels_outside_of_the_known_ones(self, tmp_path: Path) -> None:
        write(tmp_path, "train", [good(0), good(1), good(2), good(3)])
        write(tmp_path, "test", [good(4), {"text": "a", "label": "maybe"}])
        with pytest.raises(DataError, match="no training row has: 'maybe'") as stopped:
            load(tmp_path)
        assert str(stopped.value).startswith(f"{tmp_path}/test.jsonl:2: ")
        splits = load(tmp_path, on_bad_rows="drop")
        assert (len(splits.get("test")), splits.label_names) == (1, ("no", "yes"))
        (tmp_path / "labels.json").write_text('["no", "yes"]')
        write(tmp_path, "train", [good(0), good(1), {"text": "a", "label": "ugly"}])
        with pytest.raises(DataError, match=r"train\.jsonl:3: label 'ugly' is not among"):
            load(tmp_path)
        assert counts_of(load(tmp_path, on_bad_rows="drop").dropped).keys() == {"train", "test"}

    def test_what_would_leave_nothing_is_an_error(self, tmp_path: Path) -> None:
        empty = {"text": "", "label": "no"}
        write(tmp_path, "train", [empty, empty, empty])
        with pytest.raises(DataError, match="every row is bad, and none would be left"):
            load(tmp_path, on_bad_rows="drop")
        write(tmp_path, "train", [{"text": "a", "label": None}] * 3)
        with pytest.raises(DataError, match="no row has a label that can be used"):
            load(tmp_path, on_bad_rows="drop")
        write(tmp_path, "train", [good(0), good(1), good(2), {"text": "", "label": "rare"}])
        with pytest.raises(DataError, match="every row with the label 'rare' is bad"):
            load(tmp_path, on_bad_rows="drop")

    def test_a_stream_and_a_drawn_validation(self, tmp_path: Path) -> None:
        rows = [good(at) if at % 5 else {"text": "", "label": "no"} for at in range(40)]
        write(tmp_path, "train", rows)
        for streaming in (False, True):
            splits = load(
                tmp_path, on_bad_rows="drop", validation=0.25, max_train_samples=20,
                streaming=streaming,
            )  # fmt: skip
            for split in ("train", "validation"):
                for at, text in enumerate(splits.get(split)["text"]):
                    line = int(text.removeprefix("row ")) + 1
                    assert splits.location(split, at) == f"{tmp_path}/train.jsonl:{line}"

    @given(st.lists(st.sampled_from(["good", *BAD]), min_size=6, max_size=30))
    def test_what_is_left_is_what_was_good(
        self, tmp_path_factory: pytest.TempPathFactory, kinds: list[str]
    ) -> None:
        folder = tmp_path_factory.mktemp("rows")
        kinds = ["good", "good", *kinds]
        rows = [good(at) if kind == "good" else BAD[kind][0] for at, kind in enumerate(kinds)]
        write(folder, "train", rows)
        splits = load(folder, on_bad_rows="drop")
        kept = [row["text"] for row, kind in zip(rows, kinds, strict=True) if kind == "good"]
        assert splits.train["text"][:] == kept
        assert len(splits.dropped) == len(rows) - len(kept)
        for one in splits.dropped:
            line = int(one.location.rsplit(":", 1)[1])
            assert one.cause.startswith(BAD[kinds[line - 1]][1])


def test_a_test_file_without_labels_names_the_way_out(tmp_path: Path) -> None:
    write(tmp_path, "train", [good(0), good(1)])
    for rows in ([{"text": "a"}], [{"text": "a", "label": None}, {"text": "b", "label": ""}]):
        write(tmp_path, "test", rows)
        with pytest.raises(DataError, match=r"test\.jsonl.*label.*data\.splits\.test=null"):
            load(tmp_path, test="test")
    assert load(tmp_path).test is None
    write(tmp_path, "test", [{"text": "a"}])
    assert load(tmp_path, test=None).test is None


def test_splits_without_rows(tmp_path: Path) -> None:
    write(tmp_path, "train", [good(at) for at in range(6)])
    splits = load(tmp_path)
    less = splits.without("train", {1: "why", 4: "why not"})
    assert less.train["text"][:] == ["row 0", "row 2", "row 3", "row 5"]
    assert less.location("train", 3) == f"{tmp_path}/train.jsonl:6"
    assert [(row.location, row.cause, row.row["text"]) for row in less.dropped] == [
        (f"{tmp_path}/train.jsonl:2", "why", "row 1"),
        (f"{tmp_path}/train.jsonl:5", "why not", "row 4"),
    ]
    with pytest.raises(DataError, match="every row with the label 'yes' would be left out"):
        splits.without("train", dict.fromkeys((1, 3, 5), "why"))
    with pytest.raises(DataError, match="every row is bad, and none would be left"):
        splits.without("train", dict.fromkeys(range(6), "why"))


def test_the_record(tmp_path: Path) -> None:
    write_dropped((), tmp_path)
    assert not list(tmp_path.iterdir())
    rows = [DroppedRow("train", "f:3", "holds 'ä'", {"text": "ä", "at": Path("x")})]
    write_dropped(rows, tmp_path)
    (line,) = (tmp_path / "dropped_rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {
        "split": "train", "location": "f:3", "cause": "holds 'ä'", "row": {"text": "ä", "at": "x"},
    }  # fmt: skip
    assert counts_of([*rows, DroppedRow("train", "f:4", "holds 'b'", {})]) == {
        "train": {"holds 'ä'": 2}
    }
