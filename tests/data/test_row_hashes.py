"""What is the same input: case, white space and compatible characters aside."""

from __future__ import annotations

import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftlab.data.row_hashes import fold, folded


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Größe", "GRÖSSE", True),
        ("a\t b\n", " A B", True),
        ("ﬁne", "fine", True),
        ("\uff11\uff12", "12", True),
        (unicodedata.normalize("NFD", "É"), "é", True),
        ("a\u00a0b", "a b", True),
        ("ab", "a b", False),
        ("cafe", "café", False),
        ("a.b", "a b", False),
    ],
)
def test_what_isfold(one: str, other: str, same: bool) -> None:
    assert (fold(one) == fold(other)) == same


@given(st.text())
def test_folding_twice_changes_nothing(text: str) -> None:
    once = fold(text)
    assert fold(once) == once
    assert fold(f" {text.upper()}\n") == fold(text.upper())


@given(st.lists(st.none() | st.text() | st.text(" \t\nabAB\x1f", max_size=6)))
def test_a_column_is_folded_as_its_texts_are(texts: list[str | None]) -> None:
    for kind in (pa.string(), pa.large_string()):
        column = pa.chunked_array([pa.array(texts, kind)])
        assert folded(column) == [fold(text or "") for text in texts]


def test_other_columns_are_compared_as_json() -> None:
    column = pa.chunked_array([[{"start": 1, "end": 2}, None]])
    assert folded(column) == ['{"end": 2, "start": 1}', ""]
