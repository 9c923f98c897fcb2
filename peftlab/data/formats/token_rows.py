"""token-rows: a table with one token a row, its tag, and the sentence it is of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from peftlab.data.formats.cells import Cells, Kind, Unreadable
from peftlab.data.formats.row_format import Row, RowFormat
from peftlab.data.formats.tokens_tags import TokensTags
from peftlab.data.reading.raw_splits import RawSplit
from peftlab.errors import DataError


class TokenRows(RowFormat):
    """Rows of one sentence stand together; a blank sentence is that of the row above."""

    name: ClassVar[str] = "token-rows"
    tasks: ClassVar[tuple[str, ...]] = ("token-classification",)
    roles: ClassVar[Mapping[str, bool]] = {"sentence": True, "token": True, "tag": True}
    usual: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "sentence": ("sentence #", "sentence_id", "sentence", "sent_id", "sentence_idx", "sent",
                     "sentence id", "sentence_no", "doc_id", "document_id", "doc"),
        "token": ("word", "token", "words", "tokens", "text", "form"),
        "tag": ("tag", "ner_tag", "ner", "label", "entity", "iob", "bio", "ner_tags", "tags",
                "labels"),
    }  # fmt: skip
    targets: ClassVar[frozenset[str]] = frozenset({"tag"})
    gives: ClassVar[Mapping[str, Kind]] = {"tokens": "texts"}
    becomes: ClassVar[type[RowFormat] | None] = TokensTags

    @property
    def search_order(self) -> tuple[str, ...]:
        return ("tag", "token", "sentence")

    def fits_rows(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        tokens = [str(row.get("token") or "") for row in rows]
        return (
            all(not isinstance(row.get(r), list | dict) for row in rows for r in self.roles)
            and not is_blank(rows[0].get("sentence"))
            and all(len(token.split()) <= 2 for token in tokens)
            # Lists in cells are whole sentences.
            and not all(token.startswith(("[", "(")) for token in tokens)
        )

    def reshape(self, raw: RawSplit, columns: Mapping[str, str]) -> RawSplit:
        def rows(_: Sequence[str]) -> Iterator[tuple[int, Row]]:
            seen: set[Any] = set()
            current: Any = None
            start, words, tags = 0, list[Any](), list[Any]()
            for number, record in raw.rows(list(columns.values())):
                of = record.get(columns["sentence"])
                if not is_blank(of) and of != current:
                    if words:
                        yield start, _sentence(words, tags, columns)
                    if of in seen:
                        raise DataError(
                            f"{raw.location(number)}: the rows of sentence {of!r:.40} "
                            f"({columns['sentence']}) do not stand together; sort the file by it."
                        )
                    seen.add(of)
                    current, start, words, tags = of, number, [], []
                elif current is None:
                    raise DataError(
                        f"{raw.location(number)} is of no sentence: column "
                        f"{columns['sentence']!r} is empty before the first one."
                    )
                words.append(record.get(columns["token"]))
                tags.append(record.get(columns["tag"]))
            if words:
                yield start, _sentence(words, tags, columns)

        return replace(raw, columns=("tokens", "tags"), rows=rows, class_names={})

    def read(self, cells: Cells) -> Row:
        return TokensTags().read(cells)

    def input_row(self, row: Mapping[str, Any]) -> Row:
        return TokensTags().input_row(row)


def is_blank(value: Any) -> bool:
    """Whether a cell is empty: null, white space, or the nan of a table."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _sentence(words: list[Any], tags: list[Any], columns: Mapping[str, str]) -> Row:
    for values, role in ((words, "token"), (tags, "tag")):
        blank = next((at for at, value in enumerate(values) if is_blank(value)), None)
        if blank is not None:
            why = f"row {blank + 1} of the sentence has an empty {role} (column {columns[role]!r})"
            return {"tokens": Unreadable(" ".join(map(str, words)), why), "tags": []}
    return {"tokens": [str(word) for word in words], "tags": tags}
