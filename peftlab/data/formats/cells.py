"""The values of one row by role, with their types checked and problems collected."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from peftlab.data.reading.separated.fields import FIELD_LIMIT
from peftlab.errors import DataError

if TYPE_CHECKING:
    import pyarrow

Kind = Literal["text", "texts", "number", "count", "span", "answers", "json"]
"""The kind of a column of checked rows.

text: str; texts: [str]; number: float; count: int; span: {start, end}, characters, end excluded;
answers: {text: [str], answer_start: [int]}; json: anything, stored as JSON text, so that no object
gets the keys of another row.
"""


def arrow_type(kind: Kind) -> pyarrow.DataType:
    """The Arrow type of a kind."""
    import pyarrow as pa

    text, count = pa.large_string(), pa.int64()
    types: dict[str, pa.DataType] = {
        "text": text,
        "texts": pa.list_(text),
        "number": pa.float64(),
        "count": count,
        "span": pa.struct({"start": count, "end": count}),
        "answers": pa.struct({"text": pa.list_(text), "answer_start": pa.list_(count)}),
        "json": text,
    }
    return types[kind]


def stored(kind: Kind, values: Sequence[Any]) -> Sequence[Any]:
    """Values of a kind as Arrow stores them."""
    if kind != "json":
        return values
    return [None if v is None else json.dumps(v, ensure_ascii=False) for v in values]


def parsed(value: Any) -> Any:
    """A list or object that a text file holds as JSON; other values as they are."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


class Unreadable(str):
    """A cell of a row that cannot be used: the text that is shown of it, and why."""

    why: str

    def __new__(cls, shown: object, why: str) -> Unreadable:
        made = super().__new__(cls, f"{shown!s:.200}")
        made.why = why
        return made


class Cells:
    """One row's values by role. Readers collect problems and return a placeholder for them.

    `from_text`: the file has text only, so lists and objects are parsed as JSON. `to_predict`: the
    row is an input of `predict` and may lack its targets. `own_keys`: objects have no keys of other
    rows, as they have in Arrow.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        columns: Mapping[str, str],
        *,
        from_text: bool = False,
        to_predict: bool = False,
        own_keys: bool = True,
    ) -> None:
        self.values = values
        self.columns = columns
        self.from_text = from_text
        self.to_predict = to_predict
        self.own_keys = own_keys
        unreadable = (value.why for value in values.values() if isinstance(value, Unreadable))
        self.problems: list[str] = list(dict.fromkeys(unreadable))
        self._complete = bool(self.problems)
        self.notes: set[str] = set()
        """What is said once of all rows that share it: it is no problem."""

    def wrong(self, what: str) -> None:
        """Add a problem of the row, once; none to those of a cell that is unreadable."""
        if not self._complete and what not in self.problems:
            self.problems.append(what)

    def note(self, what: str) -> None:
        """Have something said once of all rows of which it holds."""
        self.notes.add(what)

    def raise_any(self) -> None:
        """Raise `DataError` if there are problems."""
        if self.problems:
            raise DataError(f"{'; '.join(self.problems)}.")

    def has(self, role: str) -> bool:
        """Whether the row has a value, even an empty one, for a role."""
        return self.values.get(role) is not None

    def text(self, role: str, *, may_be_empty: bool = False) -> str:
        """The text of a required role."""
        value = self.values.get(role)
        what = text_problem(value, role, self.column(role), may_be_empty=may_be_empty)
        if what is None:
            return str(value)
        self.wrong(what)
        return ""

    def texts(self, role: str, *, may_be_empty: bool = False) -> list[str]:
        """A list of texts; `may_be_empty` refers to the list."""
        values = self.listed(role)
        if not values and not may_be_empty and not self.problems:
            self.wrong(f"column {self.column(role)!r} is an empty list")
        for value in values:
            if not isinstance(value, str):
                self.wrong(
                    f"column {self.column(role)!r} holds {value!r:.40} ({type_name(value)}) in a "
                    "list of text"
                )
                return []
            if (what := text_problem(value, role, self.column(role))) is not None:
                self.wrong(f"{what} (in a list)" if value else self._empty_item(role))
                return []
        return values

    def _empty_item(self, role: str) -> str:
        return f"column {self.column(role)!r} has an empty text in its list"

    def listed(self, role: str) -> list[Any]:
        """A list of anything."""
        value = self.parsed(role)
        if isinstance(value, list):
            return value
        self._not_a("list", role, value)
        return []

    def parsed(self, role: str) -> Any:
        """A list, object or number; parsed as JSON in files with text only."""
        value = self.values.get(role)
        if not (self.from_text and isinstance(value, str)) or not value.strip():
            return value
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value

    def _not_a(self, kind: str, role: str, value: Any) -> None:
        column = self.column(role)
        if value is None or value == "":
            self.wrong(f"column {column!r} is null or missing")
        elif self.from_text:
            self.wrong(
                f"column {column!r} holds {value!r:.40}, which is not a JSON {kind}; write it as "
                + ('["a", "b"], quotes doubled in csv' if kind == "list" else '{"start": 0, ...}')
            )
        else:
            self.wrong(f"column {column!r} holds {_shown(value)}, not a {kind}")

    def mapping(self, role: str) -> dict[str, Any]:
        """An object."""
        value = self.parsed(role)
        if isinstance(value, dict):
            return value
        self._not_a("object", role, value)
        return {}

    def span(self, role: str, length: int, of: str) -> tuple[int, int]:
        """`[start, end]` or `{start, end}` within `length` units `of` text, the end excluded."""
        value = self.parsed(role)
        column = self.column(role)
        if isinstance(value, Mapping):
            value = [value.get("start"), value.get("end")]
        whole = isinstance(value, list) and len(value) == 2
        if not whole or not all(isinstance(v, int) and not isinstance(v, bool) for v in value):
            self.wrong(f"column {column!r} holds {_shown(value)}, not a span [start, end]")
            return 0, 0
        start, end = value
        if not 0 <= start < end <= length:
            self.wrong(
                f"column {column!r} is the span {start} to {end}, outside the {length} {of} of the "
                "row, or empty"
            )
            return 0, 0
        return start, end

    def column(self, role: str) -> str:
        """The column of a role."""
        return self.columns.get(role, role)


def text_problem(
    value: object, role: str, column: str, *, may_be_empty: bool = False
) -> str | None:
    """Why a value is not usable text, or None."""
    if isinstance(value, str):
        if not value.strip() and not may_be_empty:
            return f"column {column!r} is empty; give the row a {role} or leave it out"
        if len(value) > FIELD_LIMIT:
            return f"column {column!r} has more than {FIELD_LIMIT:,} characters"
        if not value.isascii() and any("\ud800" <= mark <= "\udfff" for mark in value):
            return f"column {column!r} contains half of a surrogate pair, which is not a character"
        return None
    if value is None:
        return f"column {column!r} is null or missing"
    if isinstance(value, dict | list):
        inside = "an object" if isinstance(value, dict) else "a list"
        return f"column {column!r} holds {inside}, not text: flatten nested values first"
    return f"column {column!r} holds {value!r:.40} ({type_name(value)}), not text"


def json_problem(value: object, where: str) -> str | None:
    """Why a value cannot be stored as JSON text, or None."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            waiting += item
        elif isinstance(item, str):
            if not item.isascii() and any("\ud800" <= mark <= "\udfff" for mark in item):
                return (
                    f"{where} holds {item!r:.40}, which contains half of a surrogate pair, which "
                    "is not a character"
                )
        elif item is not None and not isinstance(item, bool | int | float):
            return f"{where} holds {item!r:.40} ({type_name(item)}), which JSON cannot hold"
    return None


def number_of(value: Any, *, from_text: bool = False) -> float | None:
    """A finite number, or None; booleans are not numbers."""
    if from_text and isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def type_name(value: object) -> str:
    """The type of a value for messages."""
    return {"int": "an integer", "str": "text", "bool": "true/false", "float": "a number"}.get(
        type(value).__name__, type(value).__name__
    )


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"an object with {', '.join(map(str, value)) or 'nothing'}"[:80]
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return f"{value!r:.40} ({type_name(value)})"
