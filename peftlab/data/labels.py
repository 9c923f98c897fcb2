"""Label names: declared beside the data, or read off the training rows, in one fixed order."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from peftlab.data.rows import CheckedSplit
from peftlab.errors import DataError

logger = logging.getLogger("peftlab")

LABELS_FILE = "labels.json"
_NAMED = 8


def read_labels_file(folder: Path) -> tuple[str, ...] | None:
    """The list of names in `labels.json`, or None where there is no such file."""
    path = folder / LABELS_FILE
    if not path.is_file():
        return None
    try:
        names = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not readable JSON: {error}.") from None
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise DataError(f'{path} must be a list of label names, like ["negative", "positive"].')
    doubled = next((name for name, count in Counter(names).items() if count > 1), None)
    if doubled is not None:
        raise DataError(f"{path} names {doubled!r} twice.")
    return tuple(names)


def name_labels(
    splits: Mapping[str, CheckedSplit], declared: tuple[str, ...] | None, origin: str
) -> tuple[tuple[str, ...], dict[str, list[str]]]:
    """Label names in their order, and each split's labels as names.

    Integers index the declared names; without any, they are their own names and sort as numbers,
    true/false becomes false, true, and text sorts by code point. Raises `DataError` for labels
    outside the declared names and for those that the training rows lack.
    """
    if declared is None:
        named = {split: _plain_names(rows) for split, rows in splits.items()}
        names = _ordered(set(named["train"]))
        _refuse_unseen(named, names, splits)
    else:
        named = {split: _declared_names(rows, declared, origin) for split, rows in splits.items()}
        names = declared
        _warn_unseen(named, names)
    _refuse_one_each(named["train"], splits["train"])
    return names, named


def _plain_names(rows: CheckedSplit) -> list[str]:
    assert rows.labels is not None
    return [str(v).lower() if isinstance(v, bool) else str(v) for v in rows.labels]


def _declared_names(rows: CheckedSplit, declared: tuple[str, ...], origin: str) -> list[str]:
    assert rows.labels is not None
    known = frozenset(declared)
    named: list[str] = []
    for index, label in enumerate(rows.labels):
        if isinstance(label, str):
            if label not in known:
                raise DataError(
                    f"{rows.location(index)}: label {label!r} is not among the names of {origin} "
                    f"({_spoken(declared)})."
                )
            named.append(label)
        elif 0 <= int(label) < len(declared):
            named.append(declared[int(label)])
        else:
            raise DataError(
                f"{rows.location(index)}: label {label} is out of range; {origin} names "
                f"{len(declared)} labels, 0 to {len(declared) - 1}."
            )
    return named


def _ordered(names: set[str]) -> tuple[str, ...]:
    if all(name.removeprefix("-").isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _refuse_unseen(
    named: Mapping[str, list[str]], names: Sequence[str], splits: Mapping[str, CheckedSplit]
) -> None:
    known = set(names)
    for split, labels in named.items():
        unseen = [label for label in dict.fromkeys(labels) if label not in known]
        if unseen:
            first = splits[split].location(labels.index(unseen[0]))
            raise DataError(
                f"{split} has labels that no training row has: {_spoken(unseen)} (first at "
                f"{first}); train has {_spoken(names)}. Add such rows to train, or leave these out."
            )


def _warn_unseen(named: Mapping[str, list[str]], names: Sequence[str]) -> None:
    seen = set(named["train"])
    missing = [name for name in names if name not in seen]
    if missing:
        logger.warning("no training row has the label %s", _spoken(missing))


def _refuse_one_each(labels: Sequence[str], rows: CheckedSplit) -> None:
    if len(labels) >= 20 and len(set(labels)) == len(labels):
        raise DataError(
            f"{rows.raw.where}: each of its {len(labels)} rows has a label of its own (such as "
            f"{labels[0]!r:.60}); is data.columns.label the right column?"
        )


def _spoken(names: Sequence[str]) -> str:
    shown = ", ".join(f"{name!r:.40}" for name in names[:_NAMED])
    return shown + (f", ... ({len(names)} in all)" if len(names) > _NAMED else "")
