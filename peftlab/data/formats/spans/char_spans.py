"""char-spans: a text, and its entities as spans of characters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeGuard

from peftlab.data.formats.cells import Cells, Kind, Unreadable, parsed
from peftlab.data.formats.conversion import accepted, converted
from peftlab.data.formats.row_format import Row, RowFormat
from peftlab.data.formats.spans.words import Span, tagged_words, words_of
from peftlab.data.formats.tokens_tags import TokensTags
from peftlab.data.reading.raw_splits import RawSplit

_START = ("start", "start_offset", "start_char", "begin")
_END = ("end", "end_offset", "end_char")
_LABEL = ("label", "labels", "tag", "type", "entity", "entity_type", "name")


class CharSpans(RowFormat):
    """`spans` is a list of `[start, end, label]`, or of objects with these, as Prodigy, doccano and
    label-studio's JSON-MIN write them; offsets count code points, and the end is excluded.

    Of Prodigy's rows, those whose `answer` is accept are read.
    """

    name: ClassVar[str] = "char-spans"
    tasks: ClassVar[tuple[str, ...]] = ("token-classification",)
    roles: ClassVar[Mapping[str, bool]] = {"text": True, "spans": True, "answer": False}
    usual: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "text": ("text", "content", "sentence", "document"),
        "spans": ("spans", "entities", "label", "labels", "ner", "annotations"),
        "answer": ("answer",),
    }
    targets: ClassVar[frozenset[str]] = frozenset({"spans", "answer"})
    gives: ClassVar[Mapping[str, Kind]] = {"tokens": "texts"}
    unread: ClassVar[Mapping[str, str]] = {
        "relations": "tags mark entities, and not how they are related",
        "_is_binary": "a word that no span marks is tagged O, whatever labels were asked for",
    }
    becomes: ClassVar[type[RowFormat] | None] = TokensTags

    def fits_rows(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        spans = [parsed(row.get("spans")) for row in rows if isinstance(row.get("text"), str)]
        return any(value and _is_spans(value) for value in spans) or (
            bool(spans) and all(value == [] for value in spans)
        )

    def reshape(self, raw: RawSplit, columns: Mapping[str, str]) -> RawSplit:
        check = accepted(raw, columns)

        def convert(values: Mapping[str, Any]) -> Row:
            check(values)
            column = columns["spans"]
            if isinstance(values["spans"], Unreadable):
                return {"tokens": values["spans"], "tags": []}
            return tagged_row(values["text"], lambda text: spans_of(values["spans"], text, column))

        return converted(raw, columns, ("tokens", "tags"), convert, nested=("spans",))

    def read(self, cells: Cells) -> Row:
        return TokensTags().read(cells)

    def input_row(self, row: Mapping[str, Any]) -> Row:
        return input_words(row)


def input_words(row: Mapping[str, Any]) -> Row:
    """A row to predict, its text cut into words as rows of spans are."""
    text = row.get("text", row.get("tokens"))
    if not isinstance(text, str) or not text.strip():
        return dict(row)
    return {**row, "text": text, "tokens": [text[start:end] for start, end in words_of(text)]}


def tagged_row(text: Any, spans: Callable[[str], list[Span]]) -> Row:
    """The row of words and tags of a text; unreadable, with the cause, where it is none."""
    if not isinstance(text, str) or not text.strip():
        what = "null, missing or empty" if text is None or text == "" else f"{text!r:.40}, no text"
        return {"tokens": Unreadable(text, f"the text is {what}"), "tags": []}
    try:
        words, tags = tagged_words(text, spans(text))
    except ValueError as cause:
        return {"tokens": Unreadable(text, str(cause)), "tags": []}
    return {"tokens": words, "tags": tags}


def spans_of(value: Any, text: str, column: str) -> list[Span]:
    """The spans of a cell. Raises `ValueError` with what is wrong with it."""
    if not _is_spans(value):
        held = "is null or missing" if value is None else f"holds {value!r:.60}"
        raise ValueError(
            f"column {column!r} {held}, not a list of [start, end, label] or of objects with "
            "start, end and label"
        )
    return [_span(item, text, column) for item in _items(value)]


def _items(value: Any) -> list[Any]:
    """One item a span, also where a table holds a list for each part."""
    if isinstance(value, Mapping):
        return [dict(zip(value, parts, strict=True)) for parts in zip(*value.values(), strict=True)]
    return list(value)


def _is_spans(value: Any) -> bool:
    if isinstance(value, Mapping):
        columns = list(value.values())
        return (
            all(isinstance(c, list) for c in columns)
            and len({len(c) for c in columns}) == 1
            and _has_parts(value)
        )
    return isinstance(value, list) and all(
        (isinstance(item, list | tuple) and len(item) == 3 and _is_offset(item[0]))
        or (isinstance(item, Mapping) and _has_parts(item))
        for item in value
    )


def _has_parts(item: Mapping[str, Any]) -> bool:
    return all(any(name in item for name in names) for names in (_START, _END, _LABEL))


def _is_offset(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _span(item: Any, text: str, column: str) -> Span:
    if isinstance(item, Mapping):
        start, end, label = (
            next((item[name] for name in names if item.get(name) is not None), None)
            for names in (_START, _END, _LABEL)
        )
        quoted = item.get("text")
    else:
        start, end, label = item
        quoted = None
    if not _is_offset(start) or not _is_offset(end):
        raise ValueError(f"column {column!r} has the span {item!r:.80}, whose ends are no integers")
    if isinstance(label, list) and len(label) == 1:
        label = label[0]
    if isinstance(label, list):
        raise ValueError(
            f"the span {start} to {end} in column {column!r} has the labels {label!r:.60}, and a "
            "word has one tag; keep one of them"
        )
    if not isinstance(label, str | int) or isinstance(label, bool) or not str(label).strip():
        raise ValueError(f"the span {start} to {end} in column {column!r} has no label")
    start, end = checked_offsets(text, start, end, quoted)
    return start, end, str(label).strip()


def checked_offsets(text: str, start: int, end: int, quoted: Any) -> tuple[int, int]:
    """Offsets in code points of a span that may quote its text.

    A quotation that is not there, but is where the offsets count UTF-16 units, as JavaScript's
    strings do, decides for those. Raises `ValueError` for one that is in neither place.
    """
    if not isinstance(quoted, str) or not quoted.strip() or text[start:end] == quoted:
        return start, end
    units = text.encode("utf-16-le", "surrogatepass")
    try:
        before = units[: 2 * start].decode("utf-16-le")
        inside = units[2 * start : 2 * end].decode("utf-16-le")
    except UnicodeDecodeError:
        before, inside = "", ""
    if inside == quoted:
        return len(before), len(before) + len(inside)
    if text[start:end].split() == quoted.split():
        return start, end
    raise ValueError(
        f"the span {start} to {end} is said to be {quoted!r:.40}, but the text has "
        f"{text[start:end]!r:.40} there"
    )
