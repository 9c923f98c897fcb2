"""A column with the names of the numbers in the label column, as SetFit's data sets have."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from peftlab.data.reading.raw_splits import RawSplit

logger = logging.getLogger("peftlab")

_SUFFIXES = ("_text", "_name", "_names", "_str")


def names_beside(splits: Mapping[str, RawSplit], column: str) -> tuple[str, tuple[str, ...]] | None:
    """The column of names, and the names in the order of the numbers; None without one.

    A column that gives a number two names, or two numbers one, is not taken, with a warning.
    """
    train = splits["train"]
    named = [f"{column}{suffix}" for suffix in _SUFFIXES]
    beside = next((name for name in train.columns if name.lower() in map(str.lower, named)), None)
    if beside is None or not all(beside in raw.columns for raw in splits.values()):
        return None
    names: dict[int, str] = {}
    numbers: dict[str, int] = {}
    for raw in splits.values():
        for _, record in raw.rows([column, beside]):
            number, text = _number(record.get(column)), record.get(beside)
            if number is None:
                return None
            if not isinstance(text, str) or not text.strip() or number == -1:
                continue
            text = text.strip()
            if names.setdefault(number, text) != text or numbers.setdefault(text, number) != number:
                logger.warning(
                    "%s: column %r does not name the labels of %r one by one (%r: %s and %s), and "
                    "is not read", raw.where, beside, column, text, number, numbers.get(text),
                )  # fmt: skip
                return None
    if len(names) < 2:
        return None
    return beside, tuple(names[number] for number in sorted(names))


def _number(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.strip().removeprefix("-").isdecimal():
        return int(value)
    return None
