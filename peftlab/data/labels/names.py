"""Label names: declared with the data, or read from the training rows, in a fixed order."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from peftlab.data.bad_rows import BadRows
from peftlab.data.labels.spelling.request import LabelRequest
from peftlab.data.labels.tags import standard_tags
from peftlab.data.labels.variants import refuse_variants
from peftlab.data.rows import CheckedSplit
from peftlab.errors import DataError, did_you_mean

if TYPE_CHECKING:
    import datasets


logger = logging.getLogger("peftlab")

_NAMED = 8
_NUMBER = re.compile(r"(\d+)", re.ASCII)
_POSITION = re.compile(r"-?\d+", re.ASCII)


Labels = list[str] | list[list[str | None]]
"""The label or the list of labels of each row, as names; None for a token without a tag."""


def name_labels(
    splits: Mapping[str, CheckedSplit], request: LabelRequest, column: str
) -> tuple[tuple[str, ...], dict[str, Labels]]:
    """Label names in order, and each split's labels as names, in lists where rows have lists.

    Integers index the declared names. Without declared names, numbers in names sort as numbers and
    text by code point. Raises `BadRows` for labels outside the declared names and labels that the
    training rows lack, `DataError` for names that differ only in case or the like. Tags of tokens
    count from every split, as rare ones often occur in one split only.
    """
    train = splits["train"]
    form = train.form
    declared, origin = request.declared, request.origin
    if form is not None and form.names is not None:
        declared, origin = form.names, origin or "the training rows"
    if declared is None:
        named = {split: _named(rows, _plain_name, split) for split, rows in splits.items()}
        every = dict.fromkeys(name for labels in named.values() for name in _flat(labels))
        refuse_variants(every, train.raw.where, column)
        if train.tags:
            names = ordered(every)
            _warn_unseen(named, names)
        else:
            names = ordered(set(_flat(named["train"])))
            _refuse_unseen(named, names)
    else:
        declarer = partial(
            _declared_name, names=_Declared.of(request, declared, splits), origin=origin
        )
        named = {split: _named(rows, declarer, split) for split, rows in splits.items()}
        names = declared
        _warn_unseen(named, names)
    _refuse_one_each(named["train"], train)
    if train.tags and (renamed := standard_tags(names, train.raw.where)):
        names = tuple(renamed.get(name, name) for name in names)
        named = {
            split: [[name and renamed.get(name, name) for name in label] for label in labels]
            for split, labels in named.items()
        }
    return names, named


def _named(rows: CheckedSplit, name: Callable[[Any, CheckedSplit, int], str], split: str) -> Labels:
    """The labels by name. Raises `BadRows` for those without one."""
    assert rows.labels is not None
    named: list[Any] = []
    bad: dict[int, str] = {}
    for index, label in enumerate(rows.labels):
        try:
            if rows.kind == "many":
                named.append([None if v is None else name(v, rows, index) for v in label])
            else:
                named.append(name(label, rows, index))
        except DataError as error:
            bad[index] = str(error)
    if bad:
        raise BadRows(bad, split)
    return named


def _flat(labels: Labels) -> Iterator[str]:
    for label in labels:
        yield from _of(label)


def _of(label: str | Sequence[str | None]) -> Iterator[str]:
    for name in (label,) if isinstance(label, str) else label:
        if name is not None:
            yield name


def _plain_name(label: Any, rows: CheckedSplit, index: int) -> str:
    return str(label).lower() if isinstance(label, bool) else str(label)


class _Declared:
    """Declared names, and whether values are their positions."""

    def __init__(self, names: tuple[str, ...], by_position: bool) -> None:
        self.names = names
        self.known = frozenset(names)
        self.by_position = by_position

    @classmethod
    def of(
        cls, request: LabelRequest, names: tuple[str, ...], splits: Mapping[str, CheckedSplit]
    ) -> _Declared:
        """Integers and texts of digits are positions, unless all of them are names.

        Raises `DataError` where they can be either, and differ.
        """
        if request.encoded:
            return cls(names, True)
        written = {
            str(value)
            for rows in splits.values()
            for label in rows.labels or ()
            for value in (label if isinstance(label, list) else (label,))
            if isinstance(value, int | str) and not isinstance(value, bool)
        }
        if not written or not all(re.fullmatch(r"-?\d+", value, re.ASCII) for value in written):
            return cls(names, False)
        if not written <= set(names):
            return cls(names, True)
        within = all(0 <= int(value) < len(names) for value in written)
        if within and any(names[int(value)] != value for value in written):
            raise DataError(
                f"{request.origin} names {_listed(names)}, and the labels are numbers that may be "
                "names or positions in that list, which differ; write the names in the order 0, "
                "1, ..., or use names that are no numbers."
            )
        return cls(names, False)


def _declared_name(
    label: Any, rows: CheckedSplit, index: int, *, names: _Declared, origin: str
) -> str:
    text = _plain_name(label, rows, index)
    if not (names.by_position and _POSITION.fullmatch(text)):
        if text not in names.known:
            hint = did_you_mean(text, names.names, cutoff=0.8) if len(names.names) < 1000 else ""
            raise DataError(
                f"label {label!r} is not among the labels of {origin} "
                f"({_listed(names.names)}){hint or '.'}"
            )
        return text
    if 0 <= int(label) < len(names.names):
        return names.names[int(label)]
    raise DataError(
        f"label {label} is out of range; {origin} names {len(names.names)} labels, 0 to "
        f"{len(names.names) - 1}."
    )


def ordered(names: Iterator[str] | Sequence[str] | set[str] | dict[str, None]) -> tuple[str, ...]:
    """Names in order: whole numbers as numbers, and so are the numbers in names of one pattern."""
    every = list(names)
    if all(name.removeprefix("-").isdecimal() for name in every):
        return tuple(sorted(every, key=lambda name: (int(name), name)))
    return tuple(sorted(every, key=lambda name: (_pieces(name), name)))


def _pieces(name: str) -> list[tuple[int, int, str]]:
    return [
        (0, int(piece), "") if at % 2 else (1, 0, piece)
        for at, piece in enumerate(_NUMBER.split(name))
    ]


def _refuse_unseen(named: Mapping[str, Labels], names: Sequence[str]) -> None:
    known = set(names)
    for split, labels in named.items():
        unseen = [label for label in dict.fromkeys(_flat(labels)) if label not in known]
        if unseen:
            what = (
                f"{split} has labels that no training row has: {_listed(unseen)}; train has "
                f"{_listed(names)}. Add such rows to train, or leave these out."
            )
            bad = (index for index, label in enumerate(labels) if not known.issuperset(_of(label)))
            raise BadRows(dict.fromkeys(bad, what), split)


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
