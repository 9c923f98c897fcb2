"""Numbers as people write them: with a point or a comma, in per cent."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from peftlab.data.labels.spelling.form import LabelForm
from peftlab.data.labels.spelling.place import Place

_POINT = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_COMMA = re.compile(r"[+-]?(?:\d+,\d*|,\d+)", re.ASCII)
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}", re.ASCII)
_GROUPED = re.compile(
    r"[+-]?\d{1,3}(?:([.,' \u00a0\u202f])\d{3})(?:\1\d{3})*(?:[.,]\d+)?", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Written:
    """One number's text: its value with a point, or None, and how it is written."""

    value: float | None
    comma: bool = False
    percent: bool = False


def number_in(text: str) -> Written:
    """The number that a text is, a comma before its fraction and a percent sign included."""
    plain = text.strip().replace("\u2212", "-")
    percent = plain.endswith("%")
    plain = plain.removesuffix("%").rstrip()
    comma = _COMMA.fullmatch(plain) is not None
    if not comma and not _POINT.fullmatch(plain):
        return Written(None)
    value = float(plain.replace(",", "."))
    if not math.isfinite(value):
        return Written(None)
    return Written(value, comma, percent)


def is_fraction(text: str) -> bool:
    """Whether a text is a plain number with a part behind the point."""
    return _POINT.fullmatch(text.strip()) is not None and not float(text).is_integer()


def is_plain_number(text: str) -> bool:
    """Whether a text is a number with neither comma nor percent sign."""
    return _POINT.fullmatch(text.strip()) is not None and math.isfinite(float(text))


def numbers_form(texts: Sequence[str], missing: frozenset[Any], place: Place) -> LabelForm:
    """How a column writes its numbers; `texts` are its different texts.

    Raises `DataError` where commas may separate thousands as well as fractions, or where the texts
    disagree.
    """
    written = {text: number_in(text) for text in texts}
    commas = [text for text, number in written.items() if number.comma]
    if commas and all(_THOUSANDS.fullmatch(text.strip().rstrip("% ")) for text in commas):
        raise place.question(
            f"holds {commas[0]!r:.40}: is the comma before thousands, or before a fraction? Write "
            f"the numbers with a point before the fraction, and with nothing before thousands."
        )
    points = [text for text in texts if is_plain_number(text.rstrip("% ")) and "." in text]
    if commas and points:
        raise place.question(
            f"holds {commas[0]!r:.40} and {points[0]!r:.40}: a comma in one number and a point in "
            "another; write all of them with a point."
        )
    grouped = next((t for t, n in written.items() if n.value is None and _grouped(t)), None)
    if grouped is not None:
        raise place.question(
            f"holds {grouped!r:.40}, a number with thousands set apart; write it without."
        )
    percent = _all_alike(written, place)
    spelling = "a number a row" + (", a comma before its fraction" if commas else "")
    spelling += ", in per cent (10% is 0.1)" if percent else ""

    def read(value: Any) -> Any:
        number = _number_of(value)
        if number is None or (not isinstance(value, str) and percent):
            raise ValueError(f"holds {value!r:.40}, not a finite number")
        if number.comma and not commas:
            raise ValueError(f"holds {value!r:.40}, with a comma that no training row has")
        if number.percent != percent:
            other = "no percent sign, as training rows have" if percent else "a percent sign"
            raise ValueError(f"holds {value!r:.40}, with {other}")
        assert number.value is not None
        # Divided by 100 as decimals: 0.07 * 100 is not 7.
        return number.value / 100 if percent else number.value

    return LabelForm("number", spelling, read, missing)


def _number_of(value: Any) -> Written | None:
    if isinstance(value, str):
        number = number_in(value)
        return None if number.value is None else number
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return Written(float(value))


def _grouped(text: str) -> bool:
    return _GROUPED.fullmatch(text.strip()) is not None


def _all_alike(written: dict[str, Written], place: Place) -> bool:
    """Whether the texts are in per cent; raises where only some are."""
    with_sign = [t for t, n in written.items() if n.value is not None and n.percent]
    without = [t for t, n in written.items() if n.value is not None and not n.percent]
    if with_sign and without:
        raise place.question(
            f"holds {with_sign[0]!r:.40} and {without[0]!r:.40}: only some numbers are in per "
            "cent; write all of them in one unit."
        )
    return bool(with_sign)


def all_numbers(texts: Iterable[str]) -> bool:
    """Whether every text is a number in some spelling."""
    return all(number_in(text).value is not None for text in texts)
