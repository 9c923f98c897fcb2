"""tokens-tags: words, and a tag for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from peftlab.data.formats.cells import Cells, Kind, parsed
from peftlab.data.formats.row_format import Row, RowFormat


class TokensTags(RowFormat):
    """Tags are names, or numbers whose names are in a ClassLabel or `labels.json`."""

    name: ClassVar[str] = "tokens-tags"
    tasks: ClassVar[tuple[str, ...]] = ("token-classification",)
    roles: ClassVar[Mapping[str, bool]] = {"tokens": True, "tags": True}
    usual: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "tokens": ("tokens", "words", "token", "text"),
        "tags": ("ner_tags", "tags", "ner", "labels", "pos_tags", "chunk_tags", "label"),
    }
    targets: ClassVar[frozenset[str]] = frozenset({"tags"})
    gives: ClassVar[Mapping[str, Kind]] = {"tokens": "texts"}
    labels: ClassVar[str | None] = "tags"

    def fits(self, first: Mapping[str, Any]) -> bool:
        tokens = parsed(first.get("tokens"))
        # Lists of objects are Prodigy's, beside spans.
        return isinstance(tokens, list) and not any(isinstance(t, Mapping) for t in tokens)

    def read(self, cells: Cells) -> Row:
        if cells.to_predict and isinstance(cells.values.get("tokens"), str):
            return {"tokens": cells.text("tokens")}
        tokens = cells.texts("tokens")
        if not cells.to_predict:
            tags = cells.parsed("tags")
            if not cells.problems and isinstance(tags, list) and len(tags) != len(tokens):
                cells.wrong(
                    f"the row has {len(tokens)} tokens (column {cells.column('tokens')!r}) but "
                    f"{len(tags)} tags (column {cells.column('tags')!r})"
                )
        return {"tokens": tokens}
