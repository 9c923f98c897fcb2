"""Words that stand for a missing label, and when such a word may be a class."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from statistics import mean
from typing import Any

from peftlab.data.labels.spelling.place import Place

logger = logging.getLogger("peftlab")

_NEVER_A_CLASS = frozenset({
    "nan", "-nan", "<na>", "#n/a", "#na", "null", "nat", "n.a.", "#n/a n/a", "1.#qnan", "-1.#ind",
})  # fmt: skip
"""What libraries write for a missing value, in lower case."""
_PERHAPS_A_CLASS = frozenset({"none", "na", "n/a", "-", "--", "?"})
_RARE = 0.05


def is_missing_word(value: Any) -> bool:
    """Whether a value alone says nothing: such a word, -1, an empty text, or no number."""
    if isinstance(value, str):
        word = value.strip().lower()
        return not word or word == "-1" or word in _NEVER_A_CLASS or word in _PERHAPS_A_CLASS
    if isinstance(value, float) and math.isnan(value):
        return True
    return value is None or (value == -1 and not isinstance(value, bool))


def never_a_class(word: str) -> bool:
    """Whether a text is what a library writes for a missing value."""
    return word.lower() in _NEVER_A_CLASS


def missing_words(
    counts: Mapping[Any, int],
    declared: tuple[str, ...] | None,
    place: Place,
    *,
    none_is_class: bool,
) -> frozenset[Any]:
    """Those of the values that mean a missing label; `counts` has the rows of each value.

    A word that libraries write is always one. `none`, `-`, `?` and the like are where they are rare
    beside the others; where they are not, `none` is a class, with a warning, and any other stops
    the run. Names that are declared are classes, and with them the words not declared are missing.
    `none_is_class`: the task reads such words as a class of its own.
    """
    words = {value for value in counts if isinstance(value, str)}
    known = set(declared or ())
    missing: set[Any] = {word for word in words - known if never_a_class(word)}
    perhaps = {word for word in words - known if word.lower() in _PERHAPS_A_CLASS}
    if declared is not None:
        missing |= {value for value in counts if _is_minus_one(value) and str(value) not in known}
        return frozenset(missing | (set() if none_is_class else perhaps))
    if not none_is_class:
        others = [n for value, n in counts.items() if value not in missing | perhaps]
        missing |= {word for word in perhaps if _is_missing(word, counts, others, place)}
    _ask_about_minus_one(counts, missing, place)
    return frozenset(missing)


def _is_missing(word: str, counts: Mapping[Any, int], others: list[int], place: Place) -> bool:
    count, total = counts[word], sum(counts.values())
    if not others or (count < _RARE * total and count * 3 < mean(others)):
        return True
    rows = f"{count} of {total} rows"
    if word.lower() == "none" and word != "None":
        logger.warning(
            "label column %r: %r, in %s, is read as a class; where it means that a row has no "
            "label, name the classes without it (data.label_names)", place.column, word, rows,
        )  # fmt: skip
        return False
    raise place.question(
        f"holds {word!r} in {rows}: a class, or no label? For a class list it among "
        "data.label_names=[...]; else list the classes there without it, and the rows count as "
        "rows without a label."
    )


def _is_minus_one(value: Any) -> bool:
    return value == "-1" or (value == -1 and not isinstance(value, bool))


def _ask_about_minus_one(counts: Mapping[Any, int], missing: set[Any], place: Place) -> None:
    """Stop where -1 beside 0, 1, ... may be the mark of rows without a label."""
    named = [value for value in counts if value not in missing]
    if not all(_is_integer(value) for value in named):
        return
    numbers = {int(value): counts[value] for value in named}
    if len(numbers) < 2 or set(numbers) not in (set(range(-1, max(numbers) + 1)), {-1, 1}):
        return
    total = sum(numbers.values())
    # -1, 1 and -1, 0, 1 are classes that people use.
    usual = set(numbers) in ({-1, 1}, {-1, 0, 1})
    if usual and numbers[-1] >= _RARE * total:
        return
    raise place.question(
        f"holds -1 in {numbers[-1]} of {total} rows, beside "
        f"{', '.join(map(str, sorted(set(numbers) - {-1})[:6]))}: a class, or no label? For a "
        'class list all of them, data.label_names=["-1", "0", ...]; else list the names of 0, 1, '
        "... alone, and the rows count as rows without a label."
    )


def _is_integer(value: Any) -> bool:
    if isinstance(value, str):
        digits = value.removeprefix("-")
        return digits.isdecimal() and digits.isascii() and len(digits) < 19
    return isinstance(value, int) and not isinstance(value, bool)
