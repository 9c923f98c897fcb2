"""Raw labels: their types checked, text converted to numbers where it is one."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any, Protocol

from peftlab.config.tasks.options import LabelKind
from peftlab.data.formats.cells import number_of, type_name
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

    After `check`, `values` are strings, integers or booleans, lists of them (`kind` many), or
    numbers (`kind` number). A `kind` of auto becomes many where rows have lists, else one.
    """

    def __init__(self, raw: RawSplit, column: str, kind: LabelKind) -> None:
        self.raw = raw
        self.column = column
        self.kind: LabelKind = kind
        self.hint = "; for numbers set task.problem=regression" if kind == "auto" else ""
        self.values: list[Any] = []

    @property
    def listed(self) -> bool:
        """Whether a row's label is a list, which text files hold as JSON."""
        return self.kind == "many"

    def add(self, value: Any) -> None:
        """One row's label, in order."""
        if isinstance(value, list):
            self.values.append([self._clean(item) for item in value])
        else:
            self.values.append(self._clean(value))

    def _clean(self, value: Any) -> Any:
        """A label without surrounding spaces; None for a missing one."""
        if isinstance(value, str):
            return value.strip() or None
        if (
            self.column in self.raw.class_names and value == -1
        ):  # ClassLabel's value for unlabelled rows
            return None
        return value

    def all_missing(self) -> bool:
        """Whether no row has a label."""
        return all(value is None for value in self.values)

    def check(self, numbers: array[int], problems: _Problems) -> None:
        """Collect problems of labels, and decide `kind`. Raises `DataError` for mixed types."""
        if self.kind == "auto":
            lists = any(isinstance(value, list) for value in self.values)
            self.kind = "many" if lists else "one"
        if self.kind == "number":
            self._check_numbers(numbers, problems)
        elif self.kind == "many":
            self._check_lists(numbers, problems)
        else:
            self._check_ones(numbers, problems)

    def _check_numbers(self, numbers: array[int], problems: _Problems) -> None:
        for index, (value, number) in enumerate(zip(self.values, numbers, strict=True)):
            if value is None:
                problems.add(f"label column {self.column!r} is null, missing or empty", number)
                continue
            number_value = number_of(value, from_text=self.raw.all_text)
            if number_value is None:
                problems.add(
                    f"label column {self.column!r} holds {value!r:.40}, not a finite number", number
                )
            self.values[index] = number_value

    def _check_lists(self, numbers: array[int], problems: _Problems) -> None:
        first: dict[type, tuple[Any, int]] = {}
        for value, number in zip(self.values, numbers, strict=True):
            if not isinstance(value, list):
                what = "is null, missing or empty" if value is None else f"holds {value!r:.40}"
                hint = ', not a JSON list such as ["a", "b"]' if value is not None else ""
                problems.add(f"label column {self.column!r} {what}{hint}", number)
                continue
            for item in value:
                if not isinstance(item, str | int):
                    problems.add(
                        f"label column {self.column!r} holds {item!r:.40} in a list of labels, "
                        "which are integers or names",
                        number,
                    )
                else:
                    first.setdefault(type(item), (item, number))
        self._refuse_mixed(first, problems)

    def _check_ones(self, numbers: array[int], problems: _Problems) -> None:
        first: dict[type, tuple[Any, int]] = {}
        column = self.column
        for label, number in zip(self.values, numbers, strict=True):
            if label is None:
                problems.add(f"label column {column!r} is null, missing or empty", number)
            elif isinstance(label, float):
                problems.add(
                    f"label column {column!r} holds numbers with a decimal point (such as {label});"
                    f" classes are integers or names{self.hint}",
                    number,
                )
            elif not isinstance(label, str | int):
                inside = {"dict": "objects", "list": "lists"}.get(
                    type(label).__name__, type(label).__name__
                )
                problems.add(f"label column {column!r} holds {inside}, not one label a row", number)
            else:
                first.setdefault(type(label), (label, number))
        self._refuse_mixed(first, problems)
        if self.raw.all_text and not problems.by_kind:
            self._read_integers(numbers)

    def _refuse_mixed(self, first: dict[type, tuple[Any, int]], problems: _Problems) -> None:
        if len(first) > 1 and not problems.by_kind:
            examples = ", ".join(
                f"{label!r} ({type_name(label)}) at {self.raw.location(number)}"
                for label, number in first.values()
            )
            raise DataError(
                f"label column {self.column!r} mixes types: {examples}. Use one type throughout."
            )

    def _read_integers(self, numbers: array[int]) -> None:
        """Text files: convert labels that are all integers, refuse fractions."""
        labels = self.values
        if all(_is_integer(label) for label in labels):
            self.values = [int(label) for label in labels]
            return
        fraction = next((i for i, label in enumerate(labels) if "." in label), None)
        if fraction is not None and all(_is_number(label) for label in labels):
            raise DataError(
                f"{self.raw.location(numbers[fraction])}: label column {self.column!r} holds "
                f"numbers with a decimal point (such as {labels[fraction]}); classes are integers "
                f"or names{self.hint}."
            )


def _is_integer(label: str) -> bool:
    digits = label.removeprefix("-")
    return digits.isdecimal() and digits.isascii() and len(digits) < 19 and str(int(label)) == label


def _is_number(label: str) -> bool:
    return number_of(label, from_text=True) is not None
