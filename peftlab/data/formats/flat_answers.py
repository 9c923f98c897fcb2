"""qa-flat: a question, a context and the answer's text in columns, with or without its start."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from peftlab.data.formats.cells import Cells, Kind, Unreadable, parsed, text_problem
from peftlab.data.formats.conversion import converted
from peftlab.data.formats.row_format import Row, RowFormat
from peftlab.data.formats.squad import Squad
from peftlab.data.formats.token_rows import is_blank
from peftlab.data.reading.raw_splits import RawSplit

_TRUE = (True, 1, "true", "True", "TRUE", "1")


class FlatAnswers(RowFormat):
    """`answer` is a text or a list of texts, `answer_start` a number or a list of as many.

    Without a start, an answer is where it stands in the context, which must be one place. An empty
    list, or a row that `is_impossible`, has no answer.
    """

    name: ClassVar[str] = "qa-flat"
    tasks: ClassVar[tuple[str, ...]] = ("question-answering",)
    roles: ClassVar[Mapping[str, bool]] = {
        "question": True, "context": True, "answer": True, "answer_start": False, "id": False,
        "is_impossible": False,
    }  # fmt: skip
    usual: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **{role: Squad.usual[role] for role in ("question", "context", "id", "is_impossible")},
        "answer": ("answer_text", "answer", "answers", "answer_texts"),
        "answer_start": ("answer_start", "answer_starts", "start", "answer_start_index"),
    }
    targets: ClassVar[frozenset[str]] = frozenset({"answer", "answer_start", "is_impossible"})
    gives: ClassVar[Mapping[str, Kind]] = Squad.gives
    becomes: ClassVar[type[RowFormat] | None] = Squad

    def fits_rows(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        answers = [parsed(row.get("answer")) for row in rows]
        return any(not is_blank(answer) for answer in answers) and all(
            is_blank(answer)
            or isinstance(answer, str)
            or (isinstance(answer, list) and all(isinstance(text, str) for text in answer))
            for answer in answers
        )

    def reshape(self, raw: RawSplit, columns: Mapping[str, str]) -> RawSplit:
        gives = ("question", "context", "answers", *(("id",) if "id" in columns else ()))

        def convert(values: Mapping[str, Any]) -> Row:
            row = {role: values.get(role) for role in gives}
            try:
                return row | {"answers": _answers(values, columns)}
            except ValueError as cause:
                return row | {"answers": Unreadable(values["answer"], str(cause))}

        return converted(raw, columns, gives, convert, nested=("answer", "answer_start"))

    def read(self, cells: Cells) -> Row:
        return Squad().read(cells)

    def input_row(self, row: Mapping[str, Any]) -> Row:
        return Squad().input_row({k: v for k, v in row.items() if k not in self.targets})


def _answers(values: Mapping[str, Any], columns: Mapping[str, str]) -> Mapping[str, Any]:
    """The row's answers in SQuAD's form. Raises `ValueError`."""
    column, context, given = columns["answer"], values["context"], values["answer"]
    if is_blank(given):
        if values.get("is_impossible") in _TRUE:
            return {"text": [], "answer_start": []}
        raise ValueError(
            f"column {column!r} is empty; a question without an answer has an empty list [], or is "
            "marked in a column is_impossible"
        )
    if (what := text_problem(context, "context", columns["context"])) is not None:
        raise ValueError(what)
    if not isinstance(given, str | list):
        raise ValueError(f"column {column!r} holds {given!r:.40}, neither text nor a list of it")
    texts = given if isinstance(given, list) else [given]
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"column {column!r} has the answer {text!r:.40}, which is no text")
    if values.get("is_impossible") in _TRUE and texts:
        raise ValueError(f"the row is_impossible, but has the answer {texts[0]!r:.40}")
    starts = values.get("answer_start")
    if is_blank(starts) or starts == []:
        return {"text": texts, "answer_start": [_only_place(text, context) for text in texts]}
    numbers = starts if isinstance(starts, list) else [starts]
    if len(numbers) != len(texts):
        raise ValueError(
            f"column {column!r} has {len(texts)} answers, but {columns['answer_start']!r} has "
            f"{len(numbers)} starts"
        )
    return {"text": texts, "answer_start": [_whole(n, columns["answer_start"]) for n in numbers]}


def _only_place(text: str, context: str) -> int:
    at = context.find(text)
    if at < 0:
        raise ValueError(f"the answer {text!r:.60} is not in the context")
    if context.find(text, at + 1) >= 0:
        raise ValueError(
            f"the answer {text!r:.60} is in the context more than once, and the row has no "
            "answer_start that says which is meant"
        )
    return at


def _whole(value: Any, column: str) -> int:
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise ValueError(f"column {column!r} has the start {value!r:.40}, which is no whole number")
    return int(value)
