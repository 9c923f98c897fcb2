"""Check every value of the columns in use, and gather them as Arrow columns."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from peftlab.data.formats import RawSplit
from peftlab.data.text_files import FIELD_LIMIT
from peftlab.errors import DataError

if TYPE_CHECKING:
    import pyarrow

_BATCH = 1000
_NAMED_ROWS = 3
MAY_BE_EMPTY = frozenset({"text_pair"})


@dataclass(slots=True)
class CheckedSplit:
    """A split whose values are whole: text columns in Arrow, labels still as they were written."""

    raw: RawSplit
    texts: dict[str, pyarrow.ChunkedArray]
    labels: list[str | int | bool] | None
    numbers: array[int]
    count: int

    def location(self, index: int) -> str:
        return self.raw.location(self.numbers[index])


@dataclass(slots=True)
class _Problems:
    """What is wrong, and in which rows: the first few by name, the others by count."""

    raw: RawSplit
    found: dict[str, tuple[list[str], int]] = field(default_factory=dict)

    def add(self, what: str, number: int) -> None:
        places, count = self.found.get(what, ([], 0))
        if count < _NAMED_ROWS:
            places.append(self.raw.location(number))
        self.found[what] = (places, count + 1)

    def raise_any(self) -> None:
        if not self.found:
            return
        lines = []
        for what, (places, count) in self.found.items():
            more = f" and {count - len(places)} more" if count > len(places) else ""
            lines.append(f"{', '.join(places)}{more}: {what}")
        raise DataError("\n".join(lines))


def check_rows(raw: RawSplit, columns: Mapping[str, str], *, may_lack_labels: bool = False
               ) -> CheckedSplit | None:  # fmt: skip
    """Read a split once. None: no row has a label, and `may_lack_labels` allows that.

    Raises `DataError` that names every kind of problem with its first rows: null and empty values,
    numbers and nested values where text belongs, labels of several types or with fractions.
    """
    import pyarrow as pa

    problems = _Problems(raw)
    text_columns = {role: column for role, column in columns.items() if role != "label"}
    chunks: dict[str, list[pa.Array]] = {role: [] for role in text_columns}
    labels: list[Any] = []
    numbers = array("q")
    unlabelled = 0
    for batch in _batches(raw, columns):
        gathered: dict[str, list[str]] = {role: [] for role in text_columns}
        for number, record in batch:
            numbers.append(number)
            for role, column in text_columns.items():
                what = _text_problem(record.get(column), role, column)
                if what is not None:
                    problems.add(what, number)
                gathered[role].append(record[column] if what is None else "")
            if "label" in columns:
                label = _clean_label(record.get(columns["label"]), raw, columns["label"])
                labels.append(label)
                unlabelled += label is None
        for role, values in gathered.items():
            chunks[role].append(pa.array(values, pa.large_string()))
    if may_lack_labels and unlabelled == len(numbers):
        return None
    if "label" in columns:
        _check_labels(labels, numbers, columns["label"], problems)
        if raw.all_text:
            labels = _integers_of_text(labels, numbers, columns["label"], problems)
    problems.raise_any()
    if not numbers:
        raise DataError(f"{raw.where} has no rows.")
    texts = {role: pa.chunked_array(parts, pa.large_string()) for role, parts in chunks.items()}
    return CheckedSplit(raw, texts, labels if "label" in columns else None, numbers, len(numbers))


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


def _text_problem(value: object, role: str, column: str) -> str | None:
    if isinstance(value, str):
        if not value.strip() and role not in MAY_BE_EMPTY:
            return f"column {column!r} is empty; give the row a {role} or leave it out"
        if len(value) > FIELD_LIMIT:
            return f"column {column!r} has more than {FIELD_LIMIT:,} characters"
        if not value.isascii() and any("\ud800" <= mark <= "\udfff" for mark in value):
            return f"column {column!r} holds half of a surrogate pair, which is no character"
        return None
    if value is None:
        return f"column {column!r} is null or missing"
    if isinstance(value, dict | list):
        inside = "an object" if isinstance(value, dict) else "a list"
        return f"column {column!r} holds {inside}, not text: flatten nested values first"
    return f"column {column!r} holds {value!r:.40} ({_type_name(value)}), not text"


def _type_name(value: object) -> str:
    return {"int": "an integer", "str": "text", "bool": "true/false", "float": "a number"}.get(
        type(value).__name__, type(value).__name__
    )


def _clean_label(value: Any, raw: RawSplit, column: str) -> Any:
    """Labels without the spaces around them; None where there is none."""
    if isinstance(value, str):
        return value.strip() or None
    if column in raw.class_names and value == -1:  # how ClassLabel says "unlabelled"
        return None
    return value


def _check_labels(labels: list[Any], numbers: array[int], column: str, problems: _Problems) -> None:
    first_of_type: dict[type, tuple[Any, int]] = {}
    for label, number in zip(labels, numbers, strict=True):
        if label is None:
            problems.add(f"label column {column!r} is null, missing or empty", number)
        elif isinstance(label, float):
            problems.add(
                f"label column {column!r} holds numbers with a decimal point (such as {label}); "
                "classes are integers or names",
                number,
            )
        elif not isinstance(label, str | int):
            inside = {"dict": "objects", "list": "lists"}.get(
                type(label).__name__, type(label).__name__
            )
            problems.add(f"label column {column!r} holds {inside}, not one label a row", number)
        else:
            first_of_type.setdefault(type(label), (label, number))
    if len(first_of_type) > 1 and not problems.found:
        spoken = ", ".join(
            f"{label!r} ({_type_name(label)}) at {problems.raw.location(number)}"
            for label, number in first_of_type.values()
        )
        raise DataError(f"label column {column!r} mixes types: {spoken}. Use one type throughout.")


def _integers_of_text(
    labels: list[Any], numbers: array[int], column: str, problems: _Problems
) -> list[Any]:
    """csv knows text only: labels that are all integers are integers, fractions are refused."""
    if problems.found:
        return labels
    if all(_is_integer(label) for label in labels):
        return [int(label) for label in labels]
    fraction = next((i for i, label in enumerate(labels) if "." in label), None)
    if fraction is not None and all(_is_number(label) for label in labels):
        raise DataError(
            f"{problems.raw.location(numbers[fraction])}: label column {column!r} holds numbers "
            f"with a decimal point (such as {labels[fraction]}); classes are integers or names."
        )
    return labels


def _is_integer(label: str) -> bool:
    digits = label.removeprefix("-")
    return digits.isdecimal() and digits.isascii() and len(digits) < 19 and str(int(label)) == label


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True
