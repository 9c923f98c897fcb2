"""Label names: declared with the data, or read from the training rows, in a fixed order."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from peftlab.data.rows import CheckedSplit
from peftlab.errors import DataError

if TYPE_CHECKING:
    import datasets


logger = logging.getLogger("peftlab")

_NAMED = 8


Labels = list[str] | list[list[str]]
"""The label or the list of labels of each row, as names."""


def name_labels(
    splits: Mapping[str, CheckedSplit], declared: tuple[str, ...] | None, origin: str
) -> tuple[tuple[str, ...], dict[str, Labels]]:
    """Label names in order, and each split's labels as names, in lists where rows have lists.

    Integers index the declared names. Without declared names, integers sort as numbers, booleans
    as false, true, and text by code point. Raises `DataError` for labels outside the declared names
    and for labels that the training rows lack. Tags of tokens count from every split, as rare ones
    often occur in one split only.
    """
    if declared is None:
        named = {split: _named(rows, _plain_name) for split, rows in splits.items()}
        if any(rows.tags for rows in splits.values()):
            names = _ordered({name for labels in named.values() for name in _flat(labels)})
            _warn_unseen(named, names)
        else:
            names = _ordered(set(_flat(named["train"])))
            _refuse_unseen(named, names, splits)
    else:
        declarer = partial(_declared_name, declared=declared, origin=origin)
        named = {split: _named(rows, declarer) for split, rows in splits.items()}
        names = declared
        _warn_unseen(named, names)
    _refuse_one_each(named["train"], splits["train"])
    return names, named


def _named(rows: CheckedSplit, name: Callable[[Any, CheckedSplit, int], str]) -> Labels:
    assert rows.labels is not None
    if rows.kind == "many":
        return [[name(v, rows, index) for v in label] for index, label in enumerate(rows.labels)]
    return [name(label, rows, index) for index, label in enumerate(rows.labels)]


def _flat(labels: Labels) -> Iterator[str]:
    for label in labels:
        yield from (label,) if isinstance(label, str) else label


def _plain_name(label: Any, rows: CheckedSplit, index: int) -> str:
    return str(label).lower() if isinstance(label, bool) else str(label)


def _declared_name(
    label: Any, rows: CheckedSplit, index: int, *, declared: tuple[str, ...], origin: str
) -> str:
    if isinstance(label, str):
        if label not in declared:
            raise DataError(
                f"{rows.location(index)}: label {label!r} is not among the labels of {origin} "
                f"({_listed(declared)})."
            )
        return label
    if 0 <= int(label) < len(declared):
        return declared[int(label)]
    raise DataError(
        f"{rows.location(index)}: label {label} is out of range; {origin} names "
        f"{len(declared)} labels, 0 to {len(declared) - 1}."
    )


def _ordered(names: set[str]) -> tuple[str, ...]:
    if all(name.removeprefix("-").isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _refuse_unseen(
    named: Mapping[str, Labels], names: Sequence[str], splits: Mapping[str, CheckedSplit]
) -> None:
    known = set(names)
    for split, labels in named.items():
        unseen = [label for label in dict.fromkeys(_flat(labels)) if label not in known]
        if unseen:
            row = next(i for i, label in enumerate(labels) if _has(label, unseen[0]))
            first = splits[split].location(row)
            raise DataError(
                f"{split} has labels that no training row has: {_listed(unseen)} (first at "
                f"{first}); train has {_listed(names)}. Add such rows to train, or leave these out."
            )


def _has(label: str | Sequence[str], name: str) -> bool:
    return name == label if isinstance(label, str) else name in label


def _warn_unseen(named: Mapping[str, Labels], names: Sequence[str]) -> None:
    seen = set(_flat(named["train"]))
    missing = [name for name in names if name not in seen]
    if missing:
        logger.warning("no training row has the label %s", _listed(missing))


def _refuse_one_each(labels: Labels, rows: CheckedSplit) -> None:
    if rows.kind == "one" and len(labels) >= 20 and len(set(_flat(labels))) == len(labels):
        raise DataError(
            f"{rows.raw.where}: each of its {len(labels)} rows has a different label (such as "
            f"{labels[0]!r:.60}); is data.columns.label the right column?"
        )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"{name!r:.40}" for name in names[:_NAMED])
    return shown + (f", ... ({len(names)} in all)" if len(names) > _NAMED else "")


def label_histogram(rows: datasets.Dataset, label_names: tuple[str, ...]) -> dict[str, int]:
    """The number of rows (for tags: tokens) of each label, in order, zeros included."""
    column = "tags" if "tags" in rows.column_names else "label"
    labels = rows.select_columns(column)[:][column]
    counts = Counter(
        name for label in labels for name in ((label,) if isinstance(label, str) else label)
    )
    return {name: counts[name] for name in label_names}
