"""Label columns written from known truth: what is read is the truth, or a question is asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from peftlab.data.labels.spelling.missing import is_missing_word
from peftlab.data.labels.spelling.place import Place
from peftlab.data.labels.spelling.request import LabelRequest
from peftlab.data.labels.spelling.understanding import Whole, understand
from peftlab.errors import DataError

PLACE = Place("rows.csv", "label")
MARKS = "abcdeXYZ019 -_,;|/()[]{}'\".&+:\u00e9\u4e2d"


def usable(name: str) -> bool:
    return name == name.strip() and any(map(str.isalnum, name)) and not is_missing_word(name)


NAMES = st.lists(
    st.text(MARKS, min_size=1, max_size=8).filter(usable), min_size=2, max_size=5,
    unique_by=str.casefold,
)  # fmt: skip
PLAIN = st.lists(st.text("abcdefg", min_size=1, max_size=3).filter(usable), min_size=2, max_size=5,
                 unique=True)  # fmt: skip


@st.composite
def several(draw: Any, names: st.SearchStrategy[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Names, and rows of any number of them, in the names' order."""
    chosen = draw(names)
    rows = draw(st.lists(st.lists(st.sampled_from(chosen), unique=True), min_size=2, max_size=12))
    return chosen, [sorted(row, key=chosen.index) for row in rows]


def read(values: list[Any], kind: Any = "auto", **options: Any) -> tuple[str, list[Any]] | None:
    """The kind and the labels that the values are read as; None where a question is asked."""
    keys = [value if isinstance(value, str) else Whole(value) for value in values]
    try:
        form = understand(Counter(keys), LabelRequest(kind, **options), PLACE)
        return form.kind, [form.label(value) for value in values]
    except DataError as question:
        message = str(question)
        assert message.startswith("rows.csv: label column 'label' ")
        assert "task.problem" in message or "data.label" in message or "in one way" in message
        return None
    except ValueError:  # a bad row, named with its value
        return None


LISTS: dict[str, Callable[[list[str]], Any]] = {
    "list": list,
    "repr": repr,
    "tuple": lambda row: repr(tuple(row)),
    "set": lambda row: repr(set(row)),
    "array": lambda row: repr(np.array(row, dtype=object)),
    "str of an array": lambda row: str(np.array(row, dtype=object)),
    "choices": lambda row: {"choices": row},
}


@given(several(NAMES), st.sampled_from(sorted(LISTS)))
def test_lists_of_any_names(truth: tuple[list[str], list[list[str]]], spelling: str) -> None:
    rows = truth[1]
    got = read([LISTS[spelling](row) for row in rows])
    assert got is not None
    kind, labels = got
    as_lists = labels if kind == "many" else [[label] for label in labels]
    assert [sorted(row) for row in as_lists] == [sorted(row) for row in rows]
    assert (kind == "one") == all(len(row) == 1 for row in rows)


@given(several(PLAIN), st.sampled_from([", ", ",", ";", " ; ", "|", "/", " ", "\n"]))
def test_separated_names(truth: tuple[list[str], list[list[str]]], separator: str) -> None:
    rows = [row for row in truth[1] if row]
    got = read([separator.join(row) for row in rows])
    if got is None:
        return
    kind, labels = got
    if kind == "one":
        # One class a cell: no part of a combination is seen elsewhere.
        combined = {tuple(row) for row in rows if len(row) > 1}
        alone = {row[0] for row in rows if len(row) == 1}
        parts = Counter(name for row in combined for name in row)
        assert not any(name in alone or n > 1 for name, n in parts.items())
        assert labels == [separator.join(row).strip() for row in rows]
    else:
        assert labels == rows


@given(several(NAMES), st.sampled_from(["int", "float", "bool", "text"]))
def test_places(truth: tuple[list[str], list[list[str]]], spelling: str) -> None:
    names, rows = truth
    write: dict[str, Callable[[list[int]], Any]] = {
        "int": list,
        "float": lambda row: list(map(float, row)),
        "bool": lambda row: list(map(bool, row)),
        "text": lambda row: str(np.array(row)),
    }
    got = read([write[spelling]([int(name in row) for name in names]) for row in rows])
    assert got is not None
    kind, labels = got
    as_lists = labels if kind == "many" else [[label] for label in labels]
    assert as_lists == [[str(names.index(name)) for name in row] for row in rows]
    named = read(
        [write[spelling]([int(name in row) for name in names]) for row in rows], "many",
        declared=tuple(names), origin="labels.json",
    )  # fmt: skip
    assert named == ("many", rows)


@given(several(NAMES))
def test_a_value_for_each_name(truth: tuple[list[str], list[list[str]]]) -> None:
    names, rows = truth
    got = read([{name: name in row for name in names} for row in rows], "many")
    assert got == ("many", rows)


@given(NAMES, st.lists(st.integers(0, 4), min_size=2, max_size=12))
def test_single_labels_that_look_like_lists(names: list[str], picks: list[int]) -> None:
    rows = [names[pick % len(names)] for pick in picks]
    got = read(rows)
    if got is None or got[1] == rows:
        return
    kind, labels = got
    if kind == "one":  # numbers, brackets around one word: the same classes by another name
        assert len(set(labels)) == len(set(rows))
        assert len(set(zip(rows, labels, strict=True))) == len(set(rows))
        return
    # Lists only by brackets, or by parts that are seen elsewhere.
    for row, label in zip(rows, labels, strict=True):
        if len(label) > 1 and row[0] not in "[{(":
            elsewhere = {other for other in rows if other != row}
            assert any(any(part in other for other in elsewhere) for part in label)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12), st.integers(0, 2))
def test_numbers(values: list[float], form: int) -> None:
    write = (str, lambda v: f"{v:.4f}", lambda v: f"{v:.2f}".replace(".", ","))[form]
    written = [write(value) for value in values]
    got = read(written, "number")
    assert got is not None
    assert got == ("number", [float(text.replace(",", ".")) for text in written])
