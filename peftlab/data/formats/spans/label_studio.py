"""label-studio-spans and label-studio-choices: tasks as label-studio's JSON export has them."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from peftlab.data.formats.cells import Cells, Kind, Unreadable, parsed
from peftlab.data.formats.classified import TextLabel
from peftlab.data.formats.conversion import LeftOut, converted
from peftlab.data.formats.row_format import Row, RowFormat
from peftlab.data.formats.spans.char_spans import checked_offsets, input_words, tagged_row
from peftlab.data.formats.spans.words import Span
from peftlab.data.formats.tokens_tags import TokensTags
from peftlab.data.reading.raw_splits import RawSplit


class _Export(RowFormat):
    """`data` holds the task's fields, and `annotations` what each annotator gave.

    Tasks that nobody annotated, or that were skipped, are left out. Annotations that differ are a
    bad row, unless one of them is marked as the ground truth.
    """

    roles: ClassVar[Mapping[str, bool]] = {"annotations": True, "data": True}
    usual: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "annotations": ("annotations", "completions"), "data": ("data",),
    }  # fmt: skip
    targets: ClassVar[frozenset[str]] = frozenset({"annotations"})
    holds: ClassVar[str]
    """The key of a result's value that is read."""

    def fits_rows(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        results = [
            item
            for row in rows
            for annotation in _annotations(parsed(row.get("annotations")))
            for item in annotation["result"]
        ]
        return any(self.holds in _value(item) for item in results)

    def reshape(self, raw: RawSplit, columns: Mapping[str, str]) -> RawSplit:
        assert self.becomes is not None
        return converted(raw, columns, tuple(self.becomes.roles), self._row, nested=columns)

    @abstractmethod
    def _row(self, values: Mapping[str, Any]) -> Row:
        """The row that `becomes` reads, of one task's `data` and `annotations`."""

    def _results(self, values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """The values of the annotation that counts. Raises `LeftOut`, `ValueError`."""
        given = _annotations(values["annotations"])
        done = [annotation for annotation in given if not annotation.get("was_cancelled")]
        if not done:
            raise LeftOut("skipped" if given else "without annotations")
        truth = [annotation for annotation in done if annotation.get("ground_truth")]
        chosen = truth if truth else done
        read = [
            [_value(item) for item in annotation["result"] if self.holds in _value(item)]
            for annotation in chosen
        ]
        if len({json.dumps(values, sort_keys=True) for values in read}) > 1:
            raise ValueError(
                f"the task has {len(chosen)} annotations that differ; keep one, or mark one as the "
                "ground truth"
            )
        return read[0]


class LabelStudioSpans(_Export):
    name: ClassVar[str] = "label-studio-spans"
    tasks: ClassVar[tuple[str, ...]] = ("token-classification",)
    gives: ClassVar[Mapping[str, Kind]] = {"tokens": "texts"}
    becomes: ClassVar[type[RowFormat] | None] = TokensTags
    holds: ClassVar[str] = "labels"

    def _row(self, values: Mapping[str, Any]) -> Row:
        try:
            results = self._results(values)
            text = _text(values["data"], results)
        except ValueError as cause:
            return {"tokens": Unreadable(values["data"], str(cause)), "tags": []}
        return tagged_row(text, lambda text: [_span(value, text) for value in results])

    def read(self, cells: Cells) -> Row:
        return TokensTags().read(cells)

    def input_row(self, row: Mapping[str, Any]) -> Row:
        data = row.get("data")
        return input_words({**row, "text": _text(data, [])} if isinstance(data, Mapping) else row)


class LabelStudioChoices(_Export):
    name: ClassVar[str] = "label-studio-choices"
    tasks: ClassVar[tuple[str, ...]] = ("text-classification",)
    gives: ClassVar[Mapping[str, Kind]] = {"text": "text"}
    becomes: ClassVar[type[RowFormat] | None] = TextLabel
    holds: ClassVar[str] = "choices"

    def _row(self, values: Mapping[str, Any]) -> Row:
        try:
            results = self._results(values)
            text = _text(values["data"], [])
            if not results:
                raise ValueError("the annotation has no choices")
            if len(results) > 1:
                raise ValueError(
                    f"the annotation answers {len(results)} questions with choices; export one"
                )
        except ValueError as cause:
            return {"text": Unreadable(values["data"], str(cause)), "label": None}
        return {"text": text, "label": results[0]["choices"]}

    def read(self, cells: Cells) -> Row:
        return TextLabel().read(cells)

    def input_row(self, row: Mapping[str, Any]) -> Row:
        data = row.get("data")
        return {**row, "text": _text(data, [])} if isinstance(data, Mapping) else dict(row)


def _annotations(value: Any) -> list[Mapping[str, Any]]:
    given = value if isinstance(value, list) else []
    return [
        annotation
        for annotation in given
        if isinstance(annotation, Mapping) and isinstance(annotation.get("result"), list)
    ]


def _value(item: Any) -> Mapping[str, Any]:
    value = item.get("value") if isinstance(item, Mapping) else None
    # Tables of Arrow hold the keys of every row in each.
    held = value if isinstance(value, Mapping) else {}
    return {key: part for key, part in held.items() if part is not None}


def _text(data: Any, results: Sequence[Mapping[str, Any]]) -> str:
    """The text of a task's fields: `text`, the only one, or the one that all quotations are in."""
    texts = {
        key: value
        for key, value in (data.items() if isinstance(data, Mapping) else ())
        if isinstance(value, str)
    }
    if "text" in texts:
        return texts["text"]
    if len(texts) > 1:
        quoted = [value for value in results if isinstance(value.get("text"), str)]
        texts = {
            key: text
            for key, text in texts.items()
            if quoted and all(value["text"] in text for value in quoted)
        }
    if len(texts) != 1:
        keys = ", ".join(map(str, data)) if isinstance(data, Mapping) else "no fields"
        raise ValueError(f"the task's data have {keys}: which is the text? Call that field text")
    return next(iter(texts.values()))


def _span(value: Mapping[str, Any], text: str) -> Span:
    start, end, labels = value.get("start"), value.get("end"), value["labels"]
    offsets = value.get("globalOffsets")
    if isinstance(offsets, Mapping):
        start, end = offsets.get("start"), offsets.get("end")
    if not isinstance(start, int) or not isinstance(end, int):
        raise ValueError(
            f"a span of the annotation has the ends {start!r} and {end!r}, no integers"
        )
    if not isinstance(labels, list) or len(labels) != 1:
        raise ValueError(
            f"the span {start} to {end} has the labels {labels!r:.60}, and a word has one tag"
        )
    start, end = checked_offsets(text, start, end, value.get("text"))
    return start, end, str(labels[0])
