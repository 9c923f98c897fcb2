"""What a column of labels means, decided over all values of the training rows.

A reading that the values do not settle stops the run with a question: `DataError` that names both
readings and the key that chooses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peftlab.data.labels.spelling import form as forms
from peftlab.data.labels.spelling.bracketed import parse_list
from peftlab.data.labels.spelling.flags import flag_of
from peftlab.data.labels.spelling.form import LabelForm
from peftlab.data.labels.spelling.missing import missing_words, never_a_class
from peftlab.data.labels.spelling.numbers import numbers_form
from peftlab.data.labels.spelling.place import Place, some
from peftlab.data.labels.spelling.request import LabelRequest
from peftlab.data.labels.spelling.text_cells import numbers, separated


def understand(counts: Mapping[Any, int], request: LabelRequest, place: Place) -> LabelForm:
    """The form of a column; `counts` has the rows of each value, lists and objects as `Whole`.

    Raises `DataError` for a question.
    """
    given = {value: n for value, n in counts.items() if value is not None and value != ""}
    whole = [value.value for value in given if isinstance(value, Whole)]
    plain = {value: n for value, n in given.items() if not isinstance(value, Whole)}
    if request.kind == "number":
        missing = {v for v in plain if isinstance(v, str) and _no_number(v)}
        texts = [v for v in plain if isinstance(v, str) and v not in missing]
        return numbers_form(texts, frozenset(missing), place)
    missing_here = missing_words(
        plain, request.declared, place, none_is_class=request.none_is_class
    )
    values = [value for value in plain if value not in missing_here]
    return (
        _columns(whole, values, request, missing_here)
        or _lists(whole, values, request, missing_here, place)
        or _bits(values, request, missing_here, place)
        or separated(values, request, missing_here, place)
        or numbers(values, request, missing_here, place)
        or _singles(request, missing_here)
        or forms.plain_form(request.hint, integral_floats=True, missing=missing_here)
    )


def _singles(request: LabelRequest, missing: frozenset[Any]) -> LabelForm | None:
    """Names alone where several are asked for: one label a row."""
    return forms.lists_form(missing, single_words=True) if request.kind == "many" else None


class Whole:
    """A list or an object as a key: equal where it is written the same."""

    __slots__ = ("text", "value")

    def __init__(self, value: Any) -> None:
        self.value = value
        self.text = repr(value)

    def __hash__(self) -> int:
        return hash(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Whole) and self.text == other.text


def _no_number(text: str) -> bool:
    return text.lower() in ("none", "na", "n/a", "-", "--", "?") or never_a_class(text)


def _columns(
    whole: Sequence[Any], values: Sequence[Any], request: LabelRequest, missing: frozenset[Any]
) -> LabelForm | None:
    """A column a label, or an object with yes or no for each label."""
    objects = [forms.object_of(value) for value in (*whole, *values)]
    flags = [forms.flags_of(value) for value in (*whole, *values)]
    kept = [each for each in flags if each is not None]
    # Objects with other values among them are bad rows.
    if not kept or None in objects or len(kept) < len(flags) / 2:
        return None
    names = tuple(dict.fromkeys(name for each in kept for name in each))
    exclusive = request.kind == "one" or (
        request.kind == "auto"
        and all(sum(flag_of(v) is True for v in each.values()) == 1 for each in kept)
    )
    return forms.columns_form(names, exclusive=exclusive, missing=missing)


def _lists(
    whole: Sequence[Any],
    values: Sequence[Any],
    request: LabelRequest,
    missing: frozenset[Any],
    place: Place,
) -> LabelForm | None:
    lists = [items for value in whole if (items := _listed(value)) is not None]
    written, exact, single = [], 0, []
    for value in values:
        items = _listed(value)
        if items is None:
            single.append(value)
        else:
            written.append((value, items))
            exact += _is_exact(value)
    if not lists and not written:
        return None
    every = [*lists, *(items for _, items in written)]
    if not exact and not lists and all(len(items) == 1 for items in every):
        # [OTHER] beside plain names, or a whole column of such names.
        inside = [value for value, items in written if str(items[0]) in set(map(str, single))]
        if inside:
            raise place.question(
                f"holds {inside[0]!r:.40} and the same without brackets: one label or two? Write "
                "it in one way."
            )
        return None
    if request.kind == "one":
        ones = not single and all(len(items) == 1 for items in every)
        places = None if single else _places(every, request, missing, place)
        return places or (forms.one_element_form(missing) if ones else None)
    if single:
        words = all(isinstance(value, str) for value in single) and all(
            isinstance(item, str) for items in every for item in items
        )
        return forms.lists_form(missing, single_words=words and exact > 0)
    if (found := _places(every, request, missing, place)) is not None:
        return found
    if request.kind == "auto" and all(len(items) == 1 for items in every):
        return forms.one_element_form(missing)
    return forms.lists_form(missing, single_words=False)


def _listed(value: Any) -> tuple[Any, ...] | None:
    try:
        return forms.listed(value)
    except ValueError:  # shortened by NumPy: a problem of its rows
        return None


def _is_exact(value: Any) -> bool:
    written = parse_list(value) if isinstance(value, str) else None
    return written is None or written.exact


def _places(
    every: Sequence[tuple[Any, ...]], request: LabelRequest, missing: frozenset[Any], place: Place
) -> LabelForm | None:
    """0 or 1 for each label."""
    width = len(every[0])
    hot = all(len(items) == width for items in every) and width > 1
    if not hot or not all(_is_bit(item) for items in every for item in items):
        return None
    repeated = any(len({str(item) for item in items}) < len(items) for items in every)
    if not repeated and any(isinstance(item, str) for items in every for item in items):
        return None
    declared = request.declared
    if declared is not None and len(declared) != width:
        if not repeated:
            return None  # lists of two labels that are called 0 and 1
        raise place.question(
            f"has 0 or 1 for each of {width} labels, but {request.origin} names {len(declared)}; "
            f"name {width} labels, in the order of the lists."
        )
    ones = all(sum(flag_of(item) is True for item in items) == 1 for items in every)
    exclusive = request.kind == "one" or (request.kind == "auto" and ones)
    names = declared or tuple(map(str, range(width)))
    return forms.places_form(names, exclusive=exclusive, bits=False, missing=missing)


def _is_bit(item: Any) -> bool:
    return item in (0, 1) if isinstance(item, int | float) else item in ("0", "1")


def _bits(
    values: Sequence[Any], request: LabelRequest, missing: frozenset[Any], place: Place
) -> LabelForm | None:
    """Strings of 0 and 1, all of one width."""
    texts = [value for value in values if isinstance(value, str)]
    bits = [forms.bits_of(text) for text in texts]
    width = len(bits[0]) if bits and bits[0] is not None else 0
    if (
        request.kind not in ("auto", "many")
        or len(texts) < max(len(values), 2)
        or width < 2
        or any(each is None or len(each) != width for each in bits)
    ):
        return None
    # Two places with a separator are two labels, or a number. Three are neither.
    apart = all(len(text) > width for text in texts)
    if not apart and any(len(text) > width for text in texts):
        return None
    if apart and width < 3:
        return None
    declared = request.declared
    if declared is not None and set(texts) <= set(declared):
        return None
    if not apart and request.kind == "auto" and (declared is None or len(declared) != width):
        raise place.question(
            f"holds {some(texts)}: 0 or 1 for each of {width} labels (set "
            "task.problem=multi_label), or a class each (set task.problem=single_label)?"
        )
    if declared is not None and len(declared) != width:
        raise place.question(
            f"holds {some(texts)}, 0 or 1 for each of {width} labels, but {request.origin} names "
            f"{len(declared)}; name {width} labels."
        )
    names = declared or tuple(map(str, range(width)))
    ones = request.kind == "auto" and all(
        each is not None and each.count("1") == 1 for each in bits
    )
    return forms.places_form(names, exclusive=ones, bits=True, missing=missing)
