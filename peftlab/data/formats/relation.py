"""relation: a text, two entity spans, and their relation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from peftlab.data.formats.cells import Cells, Kind
from peftlab.data.formats.row_format import Row, RowFormat

_MARK = re.compile(r"<(/?)e([12])>|\[(/?)E([12])\]")


class Relation(RowFormat):
    """Text that contains `<e1>..</e1>` and `<e2>..</e2>` or `[E1]..[/E1]` and `[E2]..[/E2]`; or
    text or tokens with span columns.

    Gives the text without marks and the character spans of `head` (e1) and `tail` (e2). Spans of
    tokens count tokens; the text is the tokens joined by spaces. Ends are excluded.
    """

    name: ClassVar[str] = "relation"
    tasks: ClassVar[tuple[str, ...]] = ("relation-extraction",)
    roles: ClassVar[Mapping[str, bool]] = {
        "text": False, "tokens": False, "head": False, "tail": False, "label": True,
    }  # fmt: skip
    usual: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "text": ("text", "sentence"),
        "tokens": ("tokens", "token", "words"),
        "head": ("head", "e1", "head_span", "subject", "subj", "h"),
        "tail": ("tail", "e2", "tail_span", "object", "obj", "t"),
        "label": ("label", "relation", "labels", "relation_type"),
    }
    targets: ClassVar[frozenset[str]] = frozenset({"label"})
    gives: ClassVar[Mapping[str, Kind]] = {"text": "text", "head": "span", "tail": "span"}
    labels: ClassVar[str | None] = "label"

    def lacking(self, columns: Mapping[str, str]) -> str | None:
        if "text" not in columns and "tokens" not in columns:
            return "text"
        if "tokens" in columns and "text" not in columns and "head" not in columns:
            return "head"
        if ("head" in columns) != ("tail" in columns):
            return "tail" if "head" in columns else "head"
        return super().lacking(columns)

    def fits(self, first: Mapping[str, Any]) -> bool:
        if first.get("head") is not None:
            return not isinstance(first.get("label"), list)
        return isinstance(first.get("text"), str) and bool(_MARK.search(str(first["text"])))

    def read(self, cells: Cells) -> Row:
        if not (cells.has("head") or cells.has("tail")):
            return _tagged(cells)
        if cells.has("tokens"):
            tokens = cells.texts("tokens")
            text = " ".join(tokens)
            starts = [0]
            for token in tokens:
                starts.append(starts[-1] + len(token) + 1)

            def span(role: str) -> tuple[int, int]:
                first, last = cells.span(role, len(tokens), "tokens")
                return starts[first], max(0, starts[last] - 1)
        else:
            text = cells.text("text")

            def span(role: str) -> tuple[int, int]:
                return cells.span(role, len(text), "characters")

        return _row(cells, text, span("head"), span("tail"))

    def input_row(self, row: Mapping[str, Any]) -> Row:
        if row.get("text") is None and row.get("tokens") is None:
            return dict(row)
        return super().input_row(row)


def _tagged(cells: Cells) -> Row:
    text = cells.text("text")
    if cells.problems:
        return _row(cells, "", (0, 0), (0, 0))
    plain, at, where = "", 0, dict[str, list[int]]()
    for mark in _MARK.finditer(text):
        plain += text[at : mark.start()]
        where.setdefault("".join(mark.groups(default="")), []).append(len(plain))
        at = mark.end()
    plain += text[at:]
    if any(len(where.get(mark, [])) != 1 for mark in ("1", "/1", "2", "/2")):
        cells.wrong(
            f"column {cells.column('text')!r} must have <e1>..</e1> and <e2>..</e2> (or [E1].. "
            "and [E2]..) exactly once each, or the row needs spans in the columns head and tail"
        )
        return _row(cells, plain, (0, 0), (0, 0))
    return _row(cells, plain, (where["1"][0], where["/1"][0]), (where["2"][0], where["/2"][0]))


def _row(cells: Cells, text: str, head: tuple[int, int], tail: tuple[int, int]) -> Row:
    if not cells.problems:
        for name, (start, end) in (("e1", head), ("e2", tail)):
            if start >= end:
                cells.wrong(f"the span of {name} is empty or ends before it starts")
        if not cells.problems and head[0] < tail[1] and tail[0] < head[1]:
            cells.wrong(
                f"the spans overlap: {text[slice(*head)]!r:.40} and {text[slice(*tail)]!r:.40}"
            )
    return {
        "text": text,
        "head": {"start": head[0], "end": head[1]},
        "tail": {"start": tail[0], "end": tail[1]},
    }
