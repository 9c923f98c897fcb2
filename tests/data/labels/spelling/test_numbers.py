from __future__ import annotations

import pytest

from peftlab.data.labels.spelling.numbers import number_in, numbers_form
from peftlab.data.labels.spelling.place import Place
from peftlab.errors import DataError

PLACE = Place("rows.csv", "score")


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1.0), ("-1.5", -1.5), ("+2", 2.0), (".5", 0.5), ("1e-3", 1e-3), ("1,5", 1.5),
     ("\u22121,5", -1.5), ("10 %", 10.0)],
)  # fmt: skip
def test_a_number(text: str, value: float) -> None:
    assert number_in(text).value == value


@pytest.mark.parametrize(
    "text", ["", "a", "nan", "inf", "1_000", "\uff11", "1,2,3", "1.2.3", "$5", "1 000", "1e999"]
)
def test_no_number(text: str) -> None:
    assert number_in(text).value is None


@pytest.mark.parametrize(
    ("texts", "what"),
    [
        (["1,500", "2,250"], "before thousands, or before a fraction"),
        (["1,5", "1.5"], "a comma in one number and a point in another"),
        (["1.234,5", "2"], "thousands set apart"),
        (["1,234,567", "2"], "thousands set apart"),
        (["10%", "0.2"], "only some numbers are in per cent"),
    ],
)
def test_what_may_be_either_is_asked(texts: list[str], what: str) -> None:
    with pytest.raises(DataError, match=what):
        numbers_form(texts, frozenset(), PLACE)


def test_other_splits_are_read_as_train_is() -> None:
    form = numbers_form(["10%", "25%"], frozenset(), PLACE)
    assert form.label("5%") == 0.05
    for value, what in (("0.5", "no percent sign"), (0.5, "not a finite"), ("1,5%", "a comma")):
        with pytest.raises(ValueError, match=what):
            form.label(value)
    with pytest.raises(ValueError, match="a percent sign"):
        numbers_form(["1", "2.5"], frozenset(), PLACE).label("5%")


@pytest.mark.parametrize("value", [True, float("inf"), [1.0], "much"])
def test_values_that_are_no_numbers(value: object) -> None:
    with pytest.raises(ValueError, match="not a finite number"):
        numbers_form(["1.5"], frozenset(), PLACE).label(value)
