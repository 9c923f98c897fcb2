"""How the cells of one source spell labels, and reading a cell by it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from peftlab.config.tasks.options import LabelKind
from peftlab.data.labels.spelling.bracketed import parse_list, parse_object
from peftlab.data.labels.spelling.flags import flag_of
from peftlab.data.labels.spelling.missing import never_a_class

Read = Callable[[Any], Any]

_CHOICES = ("choices", "labels", "label", "choice")
"""Keys under which annotation tools keep the chosen labels."""


@dataclass(frozen=True, slots=True)
class LabelForm:
    """How a column spells its labels.

    `read` turns a value that is there into a label (an integer, boolean or text), a list of them,
    or a number, by `kind`; it raises `ValueError` with the end of a sentence for any other value.
    `missing` are values that mean no label. `names` are the labels of places and columns, in order.
    """

    kind: LabelKind
    spelling: str
    read: Read
    missing: frozenset[Any] = field(default=frozenset())
    names: tuple[str, ...] | None = None

    def label(self, value: Any) -> Any:
        """A value's label, labels or number; None for a missing one. Raises as `read`."""
        if value is None or (isinstance(value, str) and not value):
            return None
        if isinstance(value, float) and value != value:
            return None
        hashable = isinstance(value, str | int | float)
        if hashable and not isinstance(value, bool) and value in self.missing:
            return None
        if isinstance(value, str) and never_a_class(value) and value not in (self.names or ()):
            if self.kind == "one" and self.spelling == PLAIN and value not in self.missing:
                return value  # declared as a class
            return None
        return self.read(value)


PLAIN = "a name or an integer a row"


def listed(value: Any) -> tuple[Any, ...] | None:
    """The items of a value that is a list, or an object with chosen labels; else None.

    Raises `ValueError` for a list that is cut short.
    """
    if isinstance(value, str):
        written = parse_list(value)
        if written is not None:
            return written.items
        value = parse_object(value)
    if isinstance(value, list | tuple | set | frozenset):
        return tuple(value)
    if isinstance(value, dict) and (chosen := chosen_of(value)) is not None:
        return chosen
    return None


def chosen_of(value: dict[str, Any]) -> tuple[Any, ...] | None:
    """The labels in an annotation tool's object such as `{"choices": ["a"]}`, or None."""
    if len(value) != 1:
        return None
    key, inside = next(iter(value.items()))
    if key not in _CHOICES:
        return None
    return tuple(inside) if isinstance(inside, list | tuple) else (inside,)


def object_of(value: Any) -> dict[str, Any] | None:
    """An object with a value for each of some names, or None."""
    if isinstance(value, str):
        value = parse_object(value)
    if not isinstance(value, dict) or not value or chosen_of(value) is not None:
        return None
    return value


def flags_of(value: Any) -> dict[str, Any] | None:
    """An object of labels with yes or no for each, or None."""
    value = object_of(value)
    if value is None:
        return None
    known = all(inside is None or flag_of(inside) is not None for inside in value.values())
    return value if known else None


def plain_form(hint: str, *, integral_floats: bool, missing: frozenset[Any]) -> LabelForm:
    """One label a row, as it stands."""

    def read(value: Any) -> Any:
        if isinstance(value, float):
            if integral_floats and value.is_integer():
                return int(value)
            raise ValueError(
                f"holds numbers with a decimal point (such as {value}); classes are integers or "
                f"names{hint}"
            )
        if isinstance(value, str | int):
            return value
        inside = {"dict": "objects", "list": "lists"}.get(type(value).__name__)
        raise ValueError(f"holds {inside or type(value).__name__}, not one label a row")

    return LabelForm("one", PLAIN, read, missing)


def whole_number_texts(missing: frozenset[Any]) -> LabelForm:
    """Integers that a file of text writes with a point: 1.0 is 1."""

    def read(value: Any) -> Any:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = 0.5
        if not number.is_integer():
            raise ValueError(f"holds {value!r:.40}, where the other rows have whole numbers")
        return int(number)

    return LabelForm("one", "a whole number a row, such as 1.0", read, missing)


def item_of(value: Any) -> Any:
    """A label in a list. Raises `ValueError` for a missing or nested one, or a fraction."""
    if isinstance(value, str):
        value = value.strip()
        if value and not never_a_class(value):
            return value
    elif isinstance(value, float) and value.is_integer():
        return int(value)
    elif isinstance(value, int):
        return value
    raise ValueError(f"holds {value!r:.40} in a list of labels, which are integers or names")


def lists_form(missing: frozenset[Any], *, single_words: bool) -> LabelForm:
    """A list of labels in a cell; `single_words`: a cell without a list is a single label."""

    def read(value: Any) -> Any:
        items = listed(value)
        if items is None:
            if single_words and isinstance(value, str):
                return [item_of(value)]
            raise ValueError(f'holds {value!r:.40}, not a JSON list such as ["a", "b"]')
        return list(dict.fromkeys(item_of(item) for item in items))

    spelling = "lists of labels" + (" and single labels" if single_words else "")
    return LabelForm("many", spelling, read, missing)


def one_element_form(missing: frozenset[Any]) -> LabelForm:
    """Lists of one label each: one label a row."""

    def read(value: Any) -> Any:
        items = listed(value)
        if items is None:
            raise ValueError(f"holds {value!r:.40}, where the other rows have a list of one label")
        if len(items) != 1:
            raise ValueError(
                f"holds a list of {len(items)} labels, where each training row has one; for any "
                "number of labels a row set task.problem=multi_label"
            )
        return item_of(items[0])

    return LabelForm("one", "lists of one label each", read, missing)


def separated_form(separator: str, missing: frozenset[Any]) -> LabelForm:
    """Labels with a separator between them; brackets are read as lists all the same."""

    def read(value: Any) -> Any:
        items = listed(value)
        if items is None:
            items = tuple(value.split(separator)) if isinstance(value, str) else (value,)
            items = tuple(i for i in items if not isinstance(i, str) or i.strip())
        return list(dict.fromkeys(item_of(item) for item in items))

    shown = {" ": "a space", "\n": "a line break", "\t": "a tab"}.get(separator, repr(separator))
    return LabelForm("many", f"labels separated by {shown}", read, missing)


_BITS = re.compile(r"[01](?:([ ,;|/\t])\s*[01](?:\1\s*[01])*)?|[01]+", re.ASCII)


def bits_of(text: str) -> tuple[str, ...] | None:
    """The bits of a text such as 101, or 1 0 1 with one separator; None for any other."""
    return tuple(re.findall("[01]", text)) if _BITS.fullmatch(text) else None


def places_form(
    names: Sequence[str], *, exclusive: bool, bits: bool, missing: frozenset[Any]
) -> LabelForm:
    """0 or 1 for each label, in lists or as a string of bits; `exclusive`: exactly one 1 a row."""

    def read(value: Any) -> Any:
        items = bits_of(value) if bits and isinstance(value, str) else listed(value)
        if items is None or len(items) != len(names):
            held = f"{value!r:.40}" if items is None else f"a list of {len(items)}"
            raise ValueError(
                f"holds {held}, where the training rows have 0 or 1 for each of {len(names)} labels"
            )
        return _present(zip(names, items, strict=True), exclusive)

    what = "a bit" if bits else "0 or 1"
    spelling = f"{what} for each of {len(names)} labels" + (", one a row" if exclusive else "")
    return LabelForm("one" if exclusive else "many", spelling, read, missing, tuple(names))


def columns_form(names: Sequence[str], *, exclusive: bool, missing: frozenset[Any]) -> LabelForm:
    """A column a label, or an object with a value for each label."""

    def read(value: Any) -> Any:
        flags = flags_of(value)
        if flags is None or not flags.keys() <= set(names):
            raise ValueError(f"holds {value!r:.60}, not yes or no for each of {', '.join(names)}")
        return _present(((name, flags.get(name)) for name in names), exclusive)

    spelling = f"0 or 1 for each of {len(names)} names" + (", one a row" if exclusive else "")
    return LabelForm("one" if exclusive else "many", spelling, read, missing, tuple(names))


def _present(items: Any, exclusive: bool) -> Any:
    present = []
    for name, value in items:
        flag = flag_of(value)
        if flag is None:
            raise ValueError(f"holds {value!r:.40} for the label {name!r}, not 0 or 1")
        if flag:
            present.append(name)
    if not exclusive:
        return present
    if len(present) != 1:
        raise ValueError(
            f"has {len(present)} labels in a row, where each training row has one; for any number "
            "of labels a row set task.problem=multi_label"
        )
    return present[0]
