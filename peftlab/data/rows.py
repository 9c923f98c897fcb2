"""Checks every value of the columns in use, and gathers them as Arrow columns."""

from __future__ import annotations

import logging
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from peftlab.data.bad_rows import LEAVE_OUT, Causes
from peftlab.data.column_file import Columns, new_columns
from peftlab.data.columns import UNLABELLED, Layout
from peftlab.data.formats.cells import Cells, arrow_type, stored
from peftlab.data.labels.spelling.form import LabelForm
from peftlab.data.labels.spelling.request import LabelRequest
from peftlab.data.labels.values import LabelKind, LabelValues
from peftlab.data.reading.raw_splits import RawSplit
from peftlab.errors import DataError

if TYPE_CHECKING:
    import pyarrow

logger = logging.getLogger("peftlab")

_BATCH = 1000

Drop = Callable[[str, str, Any], None]
"""Takes the place, the cause and the values of a row that is left out."""


@dataclass(slots=True)
class CheckedSplit:
    """A split of valid values: Arrow columns, and raw labels.

    `labels` is None without labels; `kind` is theirs, `form` how they are spelt; `tags`: each is a
    list with one per token, None where a token has none.
    """

    raw: RawSplit
    columns: dict[str, pyarrow.ChunkedArray]
    labels: list[Any] | None
    kind: LabelKind
    tags: bool
    numbers: array[int]
    count: int
    form: LabelForm | None = None

    def location(self, index: int) -> str:
        return self.raw.location(self.numbers[index])

    def without(self, bad: Iterable[int]) -> CheckedSplit:
        """The split without the rows of these indices."""
        import pyarrow as pa

        kept = np.ones(self.count, dtype=bool)
        kept[list(bad)] = False
        mask = pa.array(kept)
        labels = self.labels
        if labels is not None:
            labels = [label for label, keep in zip(labels, kept, strict=True) if keep]
        return replace(
            self,
            columns={name: column.filter(mask) for name, column in self.columns.items()},
            labels=labels,
            numbers=array("q", np.asarray(self.numbers)[kept].tolist()),
            count=int(kept.sum()),
        )

    def row(self, index: int) -> dict[str, Any]:
        """One row's values by column; `label` is raw."""
        row = {name: column[index].as_py() for name, column in self.columns.items()}
        return row if self.labels is None else {**row, "label": self.labels[index]}


@dataclass(slots=True)
class Problems:
    """Kinds of problems with their rows: the first few by name, the others by count."""

    raw: RawSplit
    causes: Causes = field(default_factory=Causes)
    by_kind: dict[str, Any] = field(default_factory=dict)
    """The first message of each cause."""
    by_row: dict[int, str] = field(default_factory=dict)
    """The first problem of each row, by number."""

    def add(self, what: str, number: int) -> None:
        cause = self.causes.add(what, lambda: self.raw.location(number))
        self.by_kind.setdefault(cause, what)
        self.by_row.setdefault(number, what)

    def raise_any(self, rows: int) -> None:
        if self.causes:
            hint = [LEAVE_OUT] if len(self.by_row) < rows else []
            raise DataError("\n".join([*self.causes.lines(), *hint]))


def check_rows(
    raw: RawSplit,
    layout: Layout,
    columns: Mapping[str, str],
    *,
    request: LabelRequest = LabelRequest(),  # noqa: B008  (it is frozen)
    label_form: LabelForm | None = None,
    may_lack_labels: bool = False,
    drop: Drop | None = None,
) -> CheckedSplit | None:
    """Read a split once. None where no row has a label and `may_lack_labels` allows that.

    `label_form` is the training rows'; None for these themselves.
    `drop` is called with place, cause and values of each row that is left out; without it, one
    `DataError` lists every kind of problem with its first rows: null and empty values, numbers and
    nested values instead of text, violations of the format, labels with fractions. Raises
    `DataError` for labels of several types, and where no row would be left, or none of a class.
    """
    role = layout.format.labels if layout.format.labels in columns else None
    labels = None
    if role is not None:
        labels = LabelValues(raw, columns[role], request, label_form)
    read = _read(raw, layout, columns, labels, drop)
    if drop is not None and not read.numbers:
        raise DataError("\n".join(["every row is bad, and none would be left:",
                                   *read.problems.causes.lines()]))  # fmt: skip
    if labels is not None and label_form is not None and labels.all_missing():
        if may_lack_labels:
            return None
        raise DataError(f"{raw.where}: no row has a label. {UNLABELLED}")
    checked = CheckedSplit(
        raw, {}, None, "one", role == "tags", read.numbers, len(read.numbers)
    )  # fmt: skip
    if drop is None:
        if labels is not None:
            labels.check(read.numbers, read.problems)
        read.problems.raise_any(len(read.numbers))
        checked.columns = read.columns.finish()
    else:
        checked.columns = read.columns.finish()
        if labels is not None:
            checked, labels = _with_good_labels(checked, labels, drop)
    if labels is None:
        return checked
    checked.labels, checked.kind, checked.form = labels.values, labels.kind, labels.form
    if checked.kind != "number" and not checked.tags:
        _check_classes(checked, read.lost)
    return checked


@dataclass(slots=True)
class _Read:
    """One pass over a split: the rows whose cells are good, or with `drop` None all numbers.

    `lost` are the labels of rows that were left out.
    """

    problems: Problems
    columns: Columns
    numbers: array[int]
    lost: set[str]


def _read(
    raw: RawSplit,
    layout: Layout,
    columns: Mapping[str, str],
    labels: LabelValues | None,
    drop: Drop | None,
) -> _Read:
    form = layout.format
    kinds = dict(form.gives)
    read = _Read(Problems(raw), new_columns(), array("q"), set())
    notes = Counter[str]()
    for batch in _batches(raw, columns):
        gathered: dict[str, list[Any]] = {}
        good = 0
        for number, record in batch:
            values = {name: record.get(column) for name, column in columns.items()}
            cells = Cells(values, columns, from_text=raw.all_text, own_keys=raw.own_keys)
            row = form.read(cells)
            notes.update(cells.notes)
            label = None
            if labels is not None:
                label = values[str(form.labels)]
            for what in cells.problems:
                read.problems.add(what, number)
            if cells.problems and drop is not None:
                drop(raw.location(number), "; ".join(cells.problems), values)
                read.lost |= _names(label)
                continue
            read.numbers.append(number)
            if labels is not None:
                labels.add(label)
            if not cells.problems:
                good += 1
                for name, value in row.items():
                    gathered.setdefault(name, []).append(value)
        if gathered and (drop is not None or not read.problems.causes):
            _add(read.columns, gathered, kinds, good, raw)
    if not read.numbers and not read.problems.causes:
        raise DataError(f"{raw.where} has no rows.")
    for what, count in sorted(notes.items()):
        logger.warning("%s: %s (%d rows)", raw.where, what, count)
    return read


def _with_good_labels(
    checked: CheckedSplit, labels: LabelValues, drop: Drop
) -> tuple[CheckedSplit, LabelValues]:
    """The split and its labels without rows whose label cannot be used."""
    given = list(labels.values)
    problems = Problems(checked.raw)
    labels.check(checked.numbers, problems)
    if not problems.causes:
        return checked, labels
    bad = [at for at, number in enumerate(checked.numbers) if number in problems.by_row]
    if len(bad) == checked.count:
        raise DataError("\n".join(["no row has a label that can be used:",
                                   *problems.causes.lines()]))  # fmt: skip
    for at in bad:
        number = checked.numbers[at]
        row = {**checked.row(at), "label": given[at]}
        drop(checked.raw.location(number), problems.by_row[number], row)
    left_out = set(bad)
    # Read again, in the form that was found: good labels of several types are still refused.
    again = LabelValues(labels.raw, labels.column, labels.request, labels.form)
    for at, label in enumerate(given):
        if at not in left_out:
            again.add(label)
    checked = checked.without(bad)
    rest = Problems(checked.raw)
    again.check(checked.numbers, rest)
    rest.raise_any(len(rest.by_row))
    return checked, again


def _names(label: Any) -> set[str]:
    """The classes that a raw label names."""
    if isinstance(label, list):
        return {name for item in label for name in _names(item)}
    if isinstance(label, str | int):
        name = str(label).strip()
        return {name} if name else set()
    return set()


def _check_classes(checked: CheckedSplit, lost: set[str]) -> None:
    """Raise `DataError` where rows that were left out are all that a class had."""
    for label in checked.labels or ():
        if not lost:
            return
        lost = lost - _names(label)
    if lost:
        names = ", ".join(f"{name!r:.40}" for name in sorted(lost)[:5])
        raise DataError(
            f"{checked.raw.where}: every row with the label {names} is bad, and "
            "data.on_bad_rows=drop would leave none of it; correct such a row, or take them all "
            "out of the file."
        )


def _add(
    columns: Columns,
    gathered: Mapping[str, list[Any]],
    kinds: Mapping[str, Any],
    count: int,
    raw: RawSplit,
) -> None:
    import pyarrow as pa

    for name, values in gathered.items():
        if len(values) != count:
            raise DataError(f"{raw.where}: some rows have {name}, and others do not.")
    columns.add(
        {
            name: pa.array(stored(kinds[name], values), arrow_type(kinds[name]))
            for name, values in gathered.items()
        }
    )


def _batches(
    raw: RawSplit, columns: Mapping[str, str]
) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    batch = []
    for item in raw.rows(list(columns.values())):
        batch.append(item)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
