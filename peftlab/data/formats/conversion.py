"""Rows of one format written as rows of another."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from peftlab.data.formats.cells import parsed
from peftlab.data.reading.raw_splits import RawSplit
from peftlab.errors import DataError

logger = logging.getLogger("peftlab")

Values = Mapping[str, Any]
"""A row's values by role."""

_ANSWERS = ("accept", "reject", "ignore")
_LOOKED_AT = 20


class LeftOut(Exception):
    """Raised for a row that is no example; its text, such as "rejected", says why."""


def converted(
    raw: RawSplit,
    columns: Mapping[str, str],
    gives: Sequence[str],
    convert: Callable[[Values], dict[str, Any]],
    *,
    nested: Collection[str] = (),
) -> RawSplit:
    """A split whose rows are what `convert` makes of each row's values by role.

    `nested` are the roles of lists and objects, which text files hold as JSON.

    Rows for which it raises `LeftOut` are counted in one log line. Raises `DataError` while rows
    are read, where every one of them is left out.
    """
    said = False

    def rows(_: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        nonlocal said
        left_out: Counter[str] = Counter()
        kept = 0
        for number, record in raw.rows(list(columns.values())):
            values = {role: record.get(column) for role, column in columns.items()}
            values |= {role: parsed(values[role]) for role in nested if role in values}
            try:
                made = convert(values)
            except LeftOut as why:
                left_out[str(why)] += 1
                continue
            kept += 1
            yield number, made
        counts = ", ".join(f"{count} {why}" for why, count in sorted(left_out.items()))
        if left_out and not kept:
            raise DataError(f"{raw.where}: no row is left to use ({counts}).")
        if left_out and not said:
            said = True
            logger.info("%s: %d rows are used and %d left out (%s)",
                        raw.where, kept, left_out.total(), counts)  # fmt: skip

    names = {
        role: raw.class_names[column]
        for role, column in columns.items()
        if column in raw.class_names and role in gives
    }
    return replace(raw, columns=tuple(gives), rows=rows, own_keys=True, class_names=names)


def accepted(raw: RawSplit, columns: Mapping[str, str]) -> Callable[[Values], None]:
    """A check of a row's `answer`, as Prodigy writes it: raises `LeftOut` for any but accept.

    It checks nothing where the first rows' column holds other words.
    """
    column = columns.get("answer")
    if column is None:
        return lambda values: None
    first = [record.get(column) for _, record in islice(raw.rows([column]), _LOOKED_AT)]
    if not are_answers(first):
        return lambda values: None

    def check(values: Values) -> None:
        answer = values.get("answer")
        if answer != "accept":
            raise LeftOut(f"with answer {answer}" if answer else "without an answer")

    return check


def are_answers(values: Sequence[Any]) -> bool:
    """Whether these are Prodigy's answers, some of which may be missing."""
    given = [value for value in values if value not in (None, "")]
    return bool(given) and all(value in _ANSWERS for value in given)
