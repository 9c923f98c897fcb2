"""Texts in cells that are several labels with a separator, or numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftlab.data.labels.spelling import form as forms
from peftlab.data.labels.spelling.form import LabelForm
from peftlab.data.labels.spelling.numbers import (
    all_numbers,
    is_fraction,
    is_plain_number,
    numbers_form,
)
from peftlab.data.labels.spelling.place import Place, some
from peftlab.data.labels.spelling.request import LabelRequest
from peftlab.data.labels.spelling.separators import SEPARATORS, decimal_commas, evidence, pieces_of

_CLASS_COLUMNS = ("class", "category", "intent", "topic", "version")


def separated(
    values: Sequence[Any], request: LabelRequest, missing: frozenset[Any], place: Place
) -> LabelForm | None:
    """The form of cells that hold several labels each; None where each is one label.

    Raises `DataError`, a question, where the different texts of the column allow both readings.
    """
    if request.separator is None or request.kind not in ("auto", "many"):
        return None
    if request.separator != "auto":
        return forms.separated_form(request.separator, missing)
    cells = [value for value in values if isinstance(value, str)]
    if len(cells) < len(values) or not cells:
        return None
    if request.declared is not None and set(cells) <= set(request.declared):
        return None
    certain = request.kind == "many"
    chosen: str | None = None
    for separator in SEPARATORS:
        seen = evidence(cells, separator)
        if seen is None:
            continue
        if chosen is not None:
            if separator == " ":
                continue  # of names with spaces
            raise _ask(place, seen.combined, (chosen, separator))
        decimals = separator == "," and decimal_commas(cells)
        if not seen.likely and not certain:
            raise _ask(place, seen.combined, (separator,), numbers=decimals)
        if decimals and not certain:
            raise _ask(place, seen.combined, (separator,), numbers=True)
        chosen = separator
        cells = pieces_of(cells, separator)
    if chosen is not None:
        return forms.separated_form(chosen, missing)
    if certain:
        combined = [c for c in cells if any(s in c for s in SEPARATORS[:4])]
        if combined:
            raise place.question(
                f"holds {some(combined)}: are these several labels each? Name the separator "
                "(data.label_separator), or set it to null where each is one label."
            )
    return None


def _ask(
    place: Place, combined: Sequence[str], separators: Sequence[str], *, numbers: bool = False
) -> Exception:
    readings = " or ".join(
        f'several labels (set data.label_separator="{_escaped(separator)}")'
        for separator in separators
    )
    fractions = ", numbers with a fraction (set task.problem=regression)" if numbers else ""
    return place.question(
        f"holds {some(list(combined))}: {readings}{fractions}, or one class each (set "
        "task.problem=single_label)?"
    )


def _escaped(separator: str) -> str:
    return separator.replace("\n", "\\n")


def numbers(
    values: Sequence[Any], request: LabelRequest, missing: frozenset[Any], place: Place
) -> LabelForm | None:
    """Numbers with a fraction, and whole numbers that are written with a point."""
    if not values or request.kind == "many":
        return None
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) < len(values):
        kinds = {type(value) for value in values}
        if float not in kinds or not kinds <= {int, float}:
            return None
        whole = all(float(value).is_integer() for value in values)
        if request.kind == "auto":
            if not whole:
                return numbers_form([], missing, place)
            _ask_whole(values, missing, place)
        return None
    if request.declared is not None and set(texts) <= set(request.declared):
        return None
    if not all_numbers(texts):
        return None
    if not all(map(is_plain_number, texts)):
        if request.kind == "auto":
            raise place.question(
                f"holds {some(texts)}: numbers (set task.problem=regression), or a class each (set "
                "task.problem=single_label)?"
            )
        return None
    if all("." not in text for text in texts) or any("e" in text.lower() for text in texts):
        return None  # 1e3 is more often a code than a number of classes.
    if any(map(is_fraction, texts)):
        if request.kind != "auto":
            return _fractions_refused(texts, request, missing)
        same = len({float(text) for text in texts}) < len(texts)
        if same or place.column.lower() in _CLASS_COLUMNS:
            raise place.question(
                f"holds {some([text for text in texts if is_fraction(text)])}: numbers (set "
                "task.problem=regression), or a class each (set task.problem=single_label)?"
            )
        return numbers_form(texts, missing, place)
    if request.kind == "auto":
        _ask_whole(texts, missing, place)
    return forms.whole_number_texts(missing)


def _ask_whole(values: Sequence[Any], missing: frozenset[Any], place: Place) -> None:
    """Stop where whole numbers are written as fractions, and may be either."""
    if len({float(value) for value in values}) > 2:
        raise place.question(
            f"holds {', '.join(map(str, values[:3]))}, ...: numbers (set task.problem=regression), "
            "or a class each (set task.problem=single_label)?"
        )


def _fractions_refused(
    texts: Sequence[str], request: LabelRequest, missing: frozenset[Any]
) -> LabelForm:
    """Classes are no fractions: every row that has one is a problem."""

    def read(value: Any) -> Any:
        if isinstance(value, str) and is_plain_number(value) and float(value).is_integer():
            return int(float(value))
        raise ValueError(
            f"holds numbers with a decimal point (such as {value}); classes are integers or names"
            + request.hint
        )

    return LabelForm("one", forms.PLAIN, read, missing)
