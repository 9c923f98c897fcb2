"""A column a label: several columns of yes or no, read as one column of labels."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from peftlab.data.formats.classified import LABEL_NAMES, TEXT_NAMES
from peftlab.data.labels.spelling.flags import flag_of
from peftlab.data.reading.raw_splits import RawSplit
from peftlab.errors import ConfigError, DataError, did_you_mean

logger = logging.getLogger("peftlab")

_ROW_IDS = frozenset({"id", "idx", "index", "guid", "uid", "uuid", "row_id", "", "unnamed: 0"})


def join_columns(raw: RawSplit, names: Sequence[str], joined: str) -> RawSplit:
    """The split with one column `joined` in the place of several: an object with their values.

    Raises `DataError` for a column that the split does not have.
    """
    for name in names:
        if name not in raw.columns:
            shown = ", ".join(raw.columns[:12]) + (", ..." if len(raw.columns) > 12 else "")
            hint = did_you_mean(name, raw.columns) or ";"
            raise DataError(
                f"{raw.where} has no column {name!r} (data.columns.label){hint} its columns are "
                f"{shown}."
            )

    def rows(columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        others = [column for column in columns if column != joined]
        wanted = list(dict.fromkeys([*others, *names])) if joined in columns else others
        for number, record in raw.rows(wanted):
            if joined in columns:
                labels = {name: record.get(name) for name in names}
                record = {name: record.get(name) for name in others} | {joined: labels}
            yield number, record

    kept = tuple(column for column in raw.columns if column not in names)
    return replace(raw, columns=(*kept, joined), rows=rows)


def joined_name(names: Sequence[str], available: Sequence[str]) -> str:
    """The name of the column that stands for several; no split has one of that name."""
    name = " + ".join(names[:3]) + (f" + {len(names) - 3} more" if len(names) > 3 else "")
    while name in available:
        name += " (labels)"
    return name


def check_names(names: Sequence[str]) -> None:
    """Raise `ConfigError` for fewer than two columns, or one named twice."""
    if len(names) < 2:
        raise ConfigError(
            "data.columns.label is a list of fewer than two columns; for one column write its name."
        )
    twice = next((name for name in names if list(names).count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"data.columns.label names the column {twice!r} twice.")


def find_label_columns(raw: RawSplit, explicit: Mapping[str, str]) -> tuple[str, ...] | None:
    """Columns of yes or no beside a text and nothing else, where no column is called a label.

    Every value is read. None where the columns are anything else.
    """
    lowered = {name.lower(): name for name in raw.columns}
    if "label" in explicit or any(name in lowered for name in LABEL_NAMES):
        return None
    texts = set(explicit.values())
    if "text" not in explicit:
        texts |= {lowered[name] for name in (*TEXT_NAMES, "text_pair") if name in lowered}
    if not texts:
        return None
    others = [n for n in raw.columns if n not in texts and n.lower() not in _ROW_IDS]
    if len(others) < 2:
        return None
    seen = dict.fromkeys(others, 0)
    for _, record in raw.rows(others):
        for name in others:
            value = record.get(name)
            if value is None or value == "":
                continue
            if flag_of(value) is None:
                return None
            seen[name] += 1
    if not all(seen.values()):
        return None
    logger.info(
        "%s: the columns %s hold only 0 and 1, and are read as a label each; for others set "
        "data.columns.label=[...]", raw.where, ", ".join(others[:8]) + ", ..." * (len(others) > 8),
    )  # fmt: skip
    return tuple(others)
