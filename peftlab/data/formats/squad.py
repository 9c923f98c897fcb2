"""squad: questions on a context, answered by spans or unanswerable (SQuAD 1.1 and 2.0)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from peftlab.data.formats.cells import Cells, Kind, parsed
from peftlab.data.formats.row_format import Row, RowFormat


class Squad(RowFormat):
    """`answers` is `{text: [...], answer_start: [...]}`, or a list of `{text, answer_start}`.

    Starts count characters of the context. An empty list means no answer. `id` is the question
    itself where rows have none, which joins answers of several annotators.
    """

    name: ClassVar[str] = "squad"
    tasks: ClassVar[tuple[str, ...]] = ("question-answering",)
    roles: ClassVar[Mapping[str, bool]] = {
        "question": True, "context": True, "answers": True, "id": False, "is_impossible": False,
    }  # fmt: skip
    usual: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "question": ("question", "query"),
        "context": ("context", "passage", "paragraph", "document"),
        "answers": ("answers", "answer"),
        "id": ("id", "qid", "question_id"),
        "is_impossible": ("is_impossible",),
    }
    targets: ClassVar[frozenset[str]] = frozenset({"answers", "is_impossible"})
    unread: ClassVar[Mapping[str, str]] = {
        "plausible_answers": "a question that the context does not answer has none",
    }
    gives: ClassVar[Mapping[str, Kind]] = {
        "id": "text", "question": "text", "context": "text", "answers": "answers",
    }  # fmt: skip

    def fits(self, first: Mapping[str, Any]) -> bool:
        answers = parsed(first.get("answers"))
        return isinstance(answers, Mapping) or (
            isinstance(answers, list) and all(isinstance(answer, Mapping) for answer in answers)
        )

    def read(self, cells: Cells) -> Row:
        question, context = cells.text("question"), cells.text("context")
        identity = cells.values.get("id")
        row: Row = {
            "id": question if identity is None else str(identity),
            "question": question,
            "context": context,
        }
        if cells.to_predict and not cells.has("answers"):
            return row
        texts, starts = self._answers(cells)
        if not cells.problems:
            if texts and cells.parsed("is_impossible") in (True, "true", "True", 1):
                cells.wrong(f"the row is_impossible, but has the answer {texts[0]!r:.40}")
            for text, start in zip(texts, starts, strict=True):
                _check(cells, context, text, start)
        row["answers"] = {"text": texts, "answer_start": starts}
        return row

    def _answers(self, cells: Cells) -> tuple[list[str], list[int]]:
        column = cells.column("answers")
        given = cells.parsed("answers")
        if isinstance(given, list):
            if not all(isinstance(answer, Mapping) for answer in given):
                cells.wrong(f"column {column!r} holds a list, but not of {{text, answer_start}}")
                return [], []
            texts = [answer.get("text") for answer in given]
            starts = [answer.get("answer_start") for answer in given]
        else:
            answers = cells.mapping("answers")
            texts, starts = answers.get("text"), answers.get("answer_start")  # type: ignore[assignment]
            if cells.problems:
                return [], []
        if not isinstance(texts, list) or not isinstance(starts, list):
            cells.wrong(f"column {column!r} lacks the lists text and answer_start")
            return [], []
        if len(texts) != len(starts):
            cells.wrong(f"column {column!r} has {len(texts)} texts but {len(starts)} starts")
            return [], []
        if not all(isinstance(text, str) and text.strip() for text in texts):
            cells.wrong(f"column {column!r} has an answer without text; no answer is an empty list")
            return [], []
        if not all(isinstance(start, int) and not isinstance(start, bool) for start in starts):
            cells.wrong(f"column {column!r} has an answer_start that is not an integer")
            return [], []
        return [str(text) for text in texts], [int(start) for start in starts]


def _check(cells: Cells, context: str, text: str, start: int) -> None:
    actual = context[start : start + len(text)] if start >= 0 else ""
    if actual == text:
        return
    at = context.find(text)
    hint = f"it is at {at}" if at >= 0 else "it is not in the context"
    cells.wrong(f"the answer {text!r:.60} is not at answer_start {start}; {hint}")
