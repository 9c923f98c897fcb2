"""Every spelling of labels that people have: what is read is the truth, or a question is asked.

The table counts: at most one spelling in ten is a question.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftlab.data.loading import load_splits
from peftlab.data.splits import Splits
from peftlab.errors import DataError

READS: dict[str, Any] = {
    "formats": ("pair", "text-label"), "roles": ("text", "text_pair", "label"), "validation": 0,
}  # fmt: skip
QUESTION = r"set task\.problem=|set data\.label_separator=|data\.label_names"


def load(folder: Path, values: list[Any], *, cells: bool, kind: Any = "auto", **options: Any
         ) -> Splits:  # fmt: skip
    """The values as the label column of a csv file (`cells`) or of JSON lines."""
    if cells:
        written = io.StringIO()
        csv.writer(written).writerows([("text", "label"), *((f"t{i}", v) for i, v in
                                                             enumerate(values))])  # fmt: skip
        (folder / "train.csv").write_text(written.getvalue(), newline="")
    else:
        rows = [{"text": f"t{i}", "label": value} for i, value in enumerate(values)]
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_splits(str(folder), **READS, label_kind=kind, **options)


NAMES = ("billing", "it's late", "login")
SEVERAL = [
    ["billing", "login"], ["login"], ["billing"], ["it's late"], ["billing", "it's late"],
    ["it's late", "login"], ["billing", "it's late", "login"], ["login"],
]  # fmt: skip
WORDS = [[name.replace("it's late", "late") for name in row] for row in SEVERAL]
HOT = [[int(name in row) for name in NAMES] for row in SEVERAL]
PLACES = [[str(at) for at, there in enumerate(row) if there] for row in HOT]
ONES = ["billing", "login", "it's late", "login", "billing", "login"]
SCORES = [0.5, 1.25, -3.0, 0.07, 1.25]


def places(write: Callable[[list[int]], Any]) -> list[Any]:
    return [write(row) for row in HOT]


# spelling: (values, in cells, the kind asked for, what the rows mean)
READ: dict[str, tuple[list[Any], bool, str, list[Any]]] = {
    "lists in JSON": (SEVERAL, False, "auto", SEVERAL),
    "JSON in cells": ([json.dumps(row) for row in SEVERAL], True, "auto", SEVERAL),
    "repr of lists": ([repr(row) for row in SEVERAL], True, "auto", SEVERAL),
    "repr of tuples": ([repr(tuple(row)) for row in SEVERAL], True, "auto", SEVERAL),
    "repr of sets": ([repr(set(row)) for row in SEVERAL], True, "auto", SEVERAL),
    "frozenset": ([repr(frozenset(row)) for row in SEVERAL], True, "auto", SEVERAL),
    "str of arrays": ([str(np.array(row)) for row in SEVERAL], True, "auto", SEVERAL),
    "repr of arrays": ([repr(np.array(row, dtype=object)) for row in SEVERAL], True, "auto",
                       SEVERAL),
    "NumPy's scalars": ([f"[{', '.join(f'np.str_({n!r})' for n in row)}]" for row in SEVERAL],
                        True, "auto", SEVERAL),
    "JSON in JSON": ([json.dumps(row) for row in SEVERAL], False, "auto", SEVERAL),
    "label-studio": ([{"choices": row} for row in SEVERAL], False, "auto", SEVERAL),
    "label-studio in cells": (
        [row[0] if len(row) == 1 else json.dumps({"choices": row}) for row in SEVERAL], True,
        "auto", SEVERAL,
    ),
    "PostgreSQL": (["{" + ",".join(row) + "}" for row in WORDS], True, "auto", WORDS),
    "0 and 1 in JSON": (HOT, False, "auto", PLACES),
    "true and false in JSON": ([[bool(v) for v in row] for row in HOT], False, "auto", PLACES),
    "0.0 and 1.0 in JSON": ([[float(v) for v in row] for row in HOT], False, "auto", PLACES),
    "0 and 1 in cells": (places(json.dumps), True, "auto", PLACES),
    "NumPy's 0 and 1": (places(lambda row: str(np.array(row))), True, "auto", PLACES),
    "NumPy's 0. and 1.": (places(lambda row: str(np.array(row, float))), True, "auto", PLACES),
    "NumPy's True and False": (places(lambda row: str(np.array(row, bool))), True, "auto", PLACES),
    "bits": (places(lambda row: "".join(map(str, row))), True, "many", PLACES),
    "bits with spaces": (places(lambda row: " ".join(map(str, row))), True, "auto", PLACES),
    "bits with commas": (places(lambda row: ",".join(map(str, row))), True, "auto", PLACES),
    "names, where several are asked for": (ONES, True, "many", [[name] for name in ONES]),
    "emoji": (["\U0001f600,\U0001f602", "\U0001f600", "\U0001f602", "\u2764,\U0001f600"], True,
              "auto", [["\U0001f600", "\U0001f602"], ["\U0001f600"], ["\U0001f602"],
                       ["\u2764", "\U0001f600"]]),
    "objects of true and false": (
        [dict(zip(NAMES, map(bool, row), strict=True)) for row in HOT], False, "auto", SEVERAL,
    ),
    "commas": ([", ".join(row) for row in SEVERAL], True, "auto", SEVERAL),
    "commas without spaces": ([",".join(row) for row in SEVERAL], True, "auto", SEVERAL),
    "semicolons": (["; ".join(row) for row in SEVERAL], True, "auto", SEVERAL),
    "bars": (["|".join(row) for row in SEVERAL], True, "auto", SEVERAL),
    "slashes": (["/".join(row) for row in SEVERAL], True, "auto", SEVERAL),
    "spaces": ([" ".join(row) for row in WORDS], True, "auto", WORDS),
    "line breaks": (["\n".join(row) for row in SEVERAL], True, "auto", SEVERAL),
    "lists of one": ([[name] for name in ONES], False, "auto", ONES),
    "lists of one in cells": ([repr([name]) for name in ONES], True, "auto", ONES),
    "one of several places": ([[int(n == name) for n in NAMES] for name in ONES], False, "auto",
                              [str(NAMES.index(name)) for name in ONES]),
    "names": (ONES, True, "auto", ONES),
    "whole numbers with a point": (["1.0", "0.0", "1.0"], True, "auto", ["1", "0", "1"]),
    "true and false": ([True, False, True], False, "auto", ["true", "false", "true"]),
    "numbers": (SCORES, False, "auto", SCORES),
    "numbers in cells": (SCORES, True, "auto", SCORES),
    "numbers as texts": (list(map(str, SCORES)), False, "auto", SCORES),
    "numbers in per cent": (["10%", "7 %", "12.5%"], True, "number", [0.1, 0.07, 0.125]),
    "numbers with commas": (["1,5", "2", "-0,25"], True, "number", [1.5, 2.0, -0.25]),
    "no number": (["1.5", "2", "3"], True, "number", [1.5, 2.0, 3.0]),
}  # fmt: skip
ASKED: dict[str, list[str]] = {
    "bits without a word": ["010", "110", "001"],
    "numbers in per cent, or classes": ["10%", "20%", "10%"],
    "numbers with commas, or classes": ["1,5", "2,5", "1,5"],
    "one combination": ["2,27", "27", "4", "2,27"],
}


@pytest.mark.parametrize("spelling", READ)
def test_what_is_read_is_the_truth(spelling: str, tmp_path: Path) -> None:
    values, cells, kind, truth = READ[spelling]
    splits = load(tmp_path, values, cells=cells, kind=kind)
    read = splits.train["label"]
    assert [sorted(row) if isinstance(row, list) else row for row in read] == truth
    assert f"{len(truth)} training rows" in splits.understood
    assert "\n" not in splits.understood


@pytest.mark.parametrize("spelling", ASKED)
def test_what_stays_open_is_asked(spelling: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=QUESTION):
        load(tmp_path, ASKED[spelling] * 2, cells=True)


def test_one_spelling_in_ten_is_a_question_at_most() -> None:
    assert len(ASKED) <= (len(READ) + len(ASKED)) / 10


def test_the_keys_of_the_questions_choose(tmp_path: Path) -> None:
    open_cells = ["2,27", "27", "4", "2,27"]
    lists = load(tmp_path, open_cells, cells=True, label_separator=",")
    assert lists.train["label"] == [["2", "27"], ["27"], ["4"], ["2", "27"]]
    one = load(tmp_path, open_cells, cells=True, kind="one")
    assert one.train["label"] == open_cells
    number = load(tmp_path, open_cells, cells=True, kind="number")
    assert number.train["label"] == [2.27, 27.0, 4.0, 2.27]
    phrases = ["student loan", "payday loan", "loan"]
    whole = load(tmp_path, phrases, cells=True, label_separator=None)
    assert whole.train["label"] == phrases


TWINS: dict[str, list[str]] = {
    "names with commas": ["Arts, Crafts", "Health, Beauty", "Sports"],
    "names with slashes": ["World", "Sports", "Business", "Sci/Tech"],
    "directions": ["Cause(e1,e2)", "Cause(e2,e1)", "Part(e1,e2)", "Other"],
    "degrees": ["very positive", "positive", "very negative", "negative"],
    "names with and": ["Society & Culture", "Science & Mathematics", "Sports"],
    "a name in brackets": ["sport", "[OTHER]", "politics"],
    "names in brackets": ["[sport]", "[politics]"],
    "names in parentheses": ["(e1,e2)", "(e2,e1)"],
    "codes with an e": ["5E1", "5E2", "1e3"],
    "codes that are one number": ["1e3", "1000"],
    "phrases": ["student loan", "payday loan", "mortgage", "credit card"],
    "codes": ["01", "02", "10"],
    "hyphens": ["sci-fi", "fi", "sci"],
    "a quote": ['"good"', "bad, really", "worse"],
}


@pytest.mark.parametrize("twin", TWINS)
def test_a_single_label_that_looks_like_a_list(twin: str, tmp_path: Path) -> None:
    values = TWINS[twin] * 3
    splits = load(tmp_path, values, cells=True)
    assert splits.label_kind == "one"
    assert splits.train["label"] == values


@pytest.mark.parametrize(
    "values",
    [["New York, NY", "Albany, NY", "Boston, MA"], ["male", "female", "male/female"],
     ["student loan", "payday loan", "loan"], ["a;b", "a", "c;d"], ["100", "101", "110"]],
)  # fmt: skip
def test_a_twin_that_may_be_either_is_asked(values: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=QUESTION):
        load(tmp_path, values * 3, cells=True)


@pytest.mark.parametrize(
    "pair", [("Pos", "pos"), ("caf\u00e9", "cafe\u0301"), ("a\u200bb", "ab"), ("\uff21b", "Ab"),
             ("a b", "a\u00a0b"), ("ok", "ok."), ("stra\u00dfe", "STRASSE"), ("x\ufe0f", "x")],
)  # fmt: skip
def test_labels_that_look_the_same_are_listed(pair: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="differ only in case") as refused:
        load(tmp_path, [*pair, "other"] * 2, cells=True)
    assert all(ascii(name)[1:-1] in str(refused.value) for name in pair)
    both = load(tmp_path, [*pair, "other"] * 2, cells=True, label_names=[*pair, "other"])
    assert both.label_names == (*pair, "other")


@pytest.mark.parametrize(
    "names", [("C", "C++", "C#"), ("PRP", "PRP$"), (".", ",", ":"), ("+", "-1")]
)
def test_marks_that_are_names_differ(names: tuple[str, ...], tmp_path: Path) -> None:
    splits = load(tmp_path, list(names) * 2, cells=False)
    assert set(splits.label_names or ()) == set(names)


def test_a_source_of_several_splits_is_read_by_trains_form(tmp_path: Path) -> None:
    load(tmp_path, [", ".join(row) for row in SEVERAL], cells=True)
    (tmp_path / "test.csv").write_text('text,label\na,"billing, login"\nb,login\n')
    splits = load_splits(str(tmp_path), **READS, label_kind="auto")
    assert splits.get("test")["label"] == [["billing", "login"], ["login"]]
    (tmp_path / "test.csv").write_text('text,label\na,"billing, logout"\nb,login\n')
    with pytest.raises(DataError, match=r"test has labels that no training row has: 'logout'"):
        load_splits(str(tmp_path), **READS, label_kind="auto")


def test_lists_of_one_in_train_and_two_in_test(tmp_path: Path) -> None:
    load(tmp_path, [[name] for name in ONES], cells=False)
    (tmp_path / "test.jsonl").write_text('{"text": "a", "label": ["billing", "login"]}\n')
    with pytest.raises(DataError, match=r"list of 2 labels, .*set task\.problem=multi_label"):
        load_splits(str(tmp_path), **READS, label_kind="auto")
