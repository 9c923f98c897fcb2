"""Checks every value of the columns in use, and gathers them as Arrow columns."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from peftlab.data.column_file import Columns, new_columns
from peftlab.data.columns import Layout
from peftlab.data.formats.cells import Cells, arrow_type, stored
from peftlab.data.labels.spelling.form import LabelForm
from peftlab.data.labels.spelling.request import LabelRequest
from peftlab.data.labels.values import LabelKind, LabelValues
from peftlab.data.reading.raw_splits import RawSplit
from peftlab.errors import DataError

if TYPE_CHECKING:
    import pyarrow

_BATCH = 1000
_NAMED_ROWS = 3


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


@dataclass(slots=True)
class Problems:
    """Kinds of problems with their rows: the first few by name, the others by count."""

    raw: RawSplit
    by_kind: dict[str, tuple[list[str], int]] = field(default_factory=dict)

    def add(self, what: str, number: int) -> None:
        places, count = self.by_kind.get(what, ([], 0))
        if count < _NAMED_ROWS:
            places.append(self.raw.location(number))
        self.by_kind[what] = (places, count + 1)

    def raise_any(self) -> None:
        if not self.by_kind:
            return
        lines = []
        for what, (places, count) in list(self.by_kind.items())[:_MOST_KINDS]:
            more = f" and {count - len(places)} more" if count > len(places) else ""
            lines.append(f"{', '.join(places)}{more}: {what}")
        if len(self.by_kind) > _MOST_KINDS:
            lines.append(f"... and {len(self.by_kind) - _MOST_KINDS} other problems.")
        raise DataError("\n".join(lines))


_MOST_KINDS = 8


def check_rows(
    raw: RawSplit,
    layout: Layout,
    columns: Mapping[str, str],
    *,
    request: LabelRequest = LabelRequest(),  # noqa: B008  (it is frozen)
    label_form: LabelForm | None = None,
    may_lack_labels: bool = False,
) -> CheckedSplit | None:
    """Read a split once. None where no row has a label and `may_lack_labels` allows that.

    `label_form` is the training rows'; None for these themselves.

    Raises one `DataError` that lists every kind of problem with its first rows: null and empty
    values, numbers and nested values instead of text, violations of the format, labels of several
    types or with fractions.
    """
    form, problems = layout.format, Problems(raw)
    role = form.labels if form.labels in columns else None
    kinds = dict(form.gives)
    gathered_columns = new_columns()
    labels = None
    if role is not None:
        labels = LabelValues(raw, columns[role], request, label_form)
    numbers = array("q")
    for batch in _batches(raw, columns):
        gathered: dict[str, list[Any]] = {}
        for number, record in batch:
            numbers.append(number)
            values = {name: record.get(column) for name, column in columns.items()}
            cells = Cells(values, columns, from_text=raw.all_text, own_keys=raw.own_keys)
            row = form.read(cells)
            if labels is not None and role is not None:
                labels.add(values[role])
            for what in cells.problems:
                problems.add(what, number)
            if not cells.problems:
                for name, value in row.items():
                    gathered.setdefault(name, []).append(value)
        if not problems.by_kind:
            _add(gathered_columns, gathered, kinds, len(batch), raw)
    if labels is not None:
        if may_lack_labels and labels.all_missing():
            return None
        labels.check(numbers, problems)
    problems.raise_any()
    if not numbers:
        raise DataError(f"{raw.where} has no rows.")
    return CheckedSplit(
        raw,
        gathered_columns.finish(),
        None if labels is None else labels.values,
        "one" if labels is None else labels.kind,
        role == "tags",
        numbers,
        len(numbers),
        None if labels is None else labels.form,
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
