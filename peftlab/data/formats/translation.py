"""translation: `{"translation": {"en": ..., "de": ...}}`, the direction configured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from peftlab.data.formats.cells import Cells, Kind, parsed
from peftlab.data.formats.conversion import converted
from peftlab.data.formats.plain import PromptCompletion
from peftlab.data.formats.row_format import Row, RowFormat
from peftlab.data.reading.raw_splits import RawSplit
from peftlab.errors import ConfigError


class Translation(RowFormat):
    """`prompt` is the path of the language to translate from, `translation.en`; of more than two,
    `completion` is that to translate into.
    """

    name: ClassVar[str] = "translation"
    tasks: ClassVar[tuple[str, ...]] = ("seq2seq", "causal-lm")
    roles: ClassVar[Mapping[str, bool]] = {
        "translation": True, "prompt": False, "completion": False,
    }  # fmt: skip
    usual: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "translation": ("translation",), "prompt": (), "completion": (),
    }  # fmt: skip
    targets: ClassVar[frozenset[str]] = frozenset({"completion"})
    gives: ClassVar[Mapping[str, Kind]] = {"prompt": "text", "completion": "text"}
    becomes: ClassVar[type[RowFormat] | None] = PromptCompletion

    def fits_rows(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        values = [parsed(row.get("translation")) for row in rows]
        return any(isinstance(value, Mapping) and len(value) > 1 for value in values)

    def reshape(self, raw: RawSplit, columns: Mapping[str, str]) -> RawSplit:
        column = columns["translation"]
        given = (parsed(record.get(column)) for _, record in raw.rows([column]))
        languages = list(next((value for value in given if isinstance(value, Mapping)), {}))
        chosen = {
            role: columns[role].partition(".")[2]
            for role in ("prompt", "completion")
            if role in columns
        }
        rest = [language for language in languages if language not in chosen.values()]
        if len(chosen) == 1 and len(rest) == 1:
            chosen["completion" if "prompt" in chosen else "prompt"] = rest[0]
        if chosen.keys() != {"prompt", "completion"}:
            raise ConfigError(
                f"{raw.where}: column {column!r} has {' and '.join(languages)}: which is "
                f"translated into which? Set data.columns.prompt={column}.{languages[0]} and "
                f"data.columns.completion={column}.{languages[-1]}, or the other way round."
            )

        def convert(values: Mapping[str, Any]) -> Row:
            whole = values["translation"]
            texts = whole if isinstance(whole, Mapping) else {}
            return {role: texts.get(language) for role, language in chosen.items()}

        return converted(raw, {"translation": column}, ("prompt", "completion"), convert,
                         nested=("translation",))  # fmt: skip

    def read(self, cells: Cells) -> Row:
        return PromptCompletion().read(cells)

    def input_row(self, row: Mapping[str, Any]) -> Row:
        return PromptCompletion().input_row(row)
