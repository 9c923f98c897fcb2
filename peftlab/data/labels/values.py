"""The labels of a split: gathered as they stand, then read as the training rows' form says."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, Protocol

from peftlab.config.tasks.options import LabelKind
from peftlab.data.formats.cells import type_name
from peftlab.data.labels import tags
from peftlab.data.labels.spelling.form import LabelForm
from peftlab.data.labels.spelling.missing import is_missing_word
from peftlab.data.labels.spelling.place import Place
from peftlab.data.labels.spelling.request import LabelRequest
from peftlab.data.labels.spelling.understanding import Whole, understand
from peftlab.data.reading.raw_splits import RawSplit
from peftlab.errors import DataError

if TYPE_CHECKING:

    class _Problems(Protocol):
        by_kind: dict[str, Any]
        raw: RawSplit

        def add(self, what: str, number: int) -> None: ...


__all__ = ["LabelKind", "LabelValues"]


class LabelValues:
    """The labels of a split.

    `form` is the training rows'; None where this split is train, whose `check` decides it. After
    `check`, `values` are strings, integers or booleans, lists of them (`kind` many), or numbers
    (`kind` number); None where a problem was found.
    """

    def __init__(
        self, raw: RawSplit, column: str, request: LabelRequest, form: LabelForm | None = None
    ) -> None:
        self.raw = raw
        self.column = column
        self.request = request
        self.form = form
        self.values: list[Any] = []

    @property
    def kind(self) -> LabelKind:
        """What a row's label is; known after `check`."""
        return self.request.kind if self.form is None else self.form.kind

    def add(self, value: Any) -> None:
        """One row's label, in order."""
        self.values.append(value.strip() if isinstance(value, str) else value)

    def all_missing(self) -> bool:
        """Whether no row has a label: all are missing, or the same word for it."""
        seen = set()
        for value in self.values:
            if isinstance(value, list | dict) or not is_missing_word(value):
                return False
            seen.add(value)
        return len(seen - {None, ""}) < 2

    def check(self, numbers: array[int], problems: _Problems) -> None:
        """Decide the form, or take train's, and read every value; collect problems.

        Raises `DataError` for a question, and for labels of several types.
        """
        place = Place(self.raw.where, self.column)
        keys = [_key(value) for value in self.values]
        counts = Counter(keys)
        given = {key: _value(key) for key in counts}
        if self.form is None:
            if self.request.tags:
                self.form = tags.tags_form(list(given.values()), self.request, place)
            else:
                self.form = understand(_plain(counts), self.request, place)
        read: dict[Hashable, Any] = {}
        wrong: dict[Hashable, str] = {}
        for key, value in given.items():
            try:
                read[key] = self.form.label(value)
            except ValueError as error:
                wrong[key] = f"label column {self.column!r} {error}"
                continue
            if read[key] is None:
                wrong[key] = self._missing(value)
        first: dict[type, tuple[Any, int]] = {}
        labels: list[Any] = []
        for key, number in zip(keys, numbers, strict=True):
            if (what := wrong.get(key)) is not None:
                problems.add(what, number)
                labels.append(None)
                continue
            label = read[key]
            labels.append(label)
            if self.kind != "number":
                for item in label if isinstance(label, list) else (label,):
                    first.setdefault(type(item), (item, number))
        self.values = labels
        first.pop(type(None), None)
        self._refuse_mixed(first, problems)

    def _missing(self, value: Any) -> str:
        column = f"label column {self.column!r}"
        if value is None or value == "" or value != value or value == -1:
            return f"{column} is null, missing or empty"
        return f"{column} holds {value!r}, which means that the label is missing"

    def _refuse_mixed(self, first: dict[type, tuple[Any, int]], problems: _Problems) -> None:
        if len(first) > 1 and not problems.by_kind:
            examples = ", ".join(
                f"{label!r} ({type_name(label)}) at {self.raw.location(number)}"
                for label, number in first.values()
            )
            raise DataError(
                f"label column {self.column!r} mixes types: {examples}. Use one type throughout."
            )


def _key(value: Any) -> Hashable:
    """A value as a key that keeps 1, 1.0, true and "1" apart."""
    if isinstance(value, str) or value is None:
        return value
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, list | tuple | dict | set):
        return Whole(value)
    try:
        return (type(value), value)
    except TypeError:
        return Whole(value)


def _value(key: Any) -> Any:
    if isinstance(key, Whole):
        return key.value
    return key[1] if isinstance(key, tuple) else key


def _plain(counts: Counter[Any]) -> dict[Any, int]:
    """The rows of each value; values that Python takes for equal, as 1 and true, are joined."""
    plain: dict[Any, int] = {}
    for key, count in counts.items():
        value = key if isinstance(key, Whole) else _value(key)
        plain[value] = plain.get(value, 0) + count
    return plain
