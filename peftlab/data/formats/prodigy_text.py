"""prodigy-text: Prodigy's classified texts, of which those with answer accept are examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from peftlab.data.formats.cells import Cells, Kind
from peftlab.data.formats.classified import TextLabel
from peftlab.data.formats.conversion import accepted, are_answers, converted
from peftlab.data.formats.row_format import Row, RowFormat
from peftlab.data.reading.raw_splits import RawSplit


class ProdigyText(RowFormat):
    """A `label`, or in `accept` the ids of the chosen `options`.

    A rejected label says what a text is not, which is no class: such rows are left out.
    """

    name: ClassVar[str] = "prodigy-text"
    tasks: ClassVar[tuple[str, ...]] = ("text-classification",)
    roles: ClassVar[Mapping[str, bool]] = {
        "text": True, "label": False, "accept": False, "options": False, "answer": True,
    }  # fmt: skip
    usual: ClassVar[Mapping[str, tuple[str, ...]]] = {
        name: (name,) for name in ("text", "label", "accept", "options", "answer")
    }
    targets: ClassVar[frozenset[str]] = frozenset({"label", "accept", "options", "answer"})
    gives: ClassVar[Mapping[str, Kind]] = {"text": "text"}
    becomes: ClassVar[type[RowFormat] | None] = TextLabel

    def lacking(self, columns: Mapping[str, str]) -> str | None:
        if "label" not in columns and "accept" not in columns:
            return "label"
        return super().lacking(columns)

    def fits_rows(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        return are_answers([row.get("answer") for row in rows])

    def reshape(self, raw: RawSplit, columns: Mapping[str, str]) -> RawSplit:
        check = accepted(raw, columns)

        def convert(values: Mapping[str, Any]) -> Row:
            check(values)
            chosen = values.get("accept")
            if chosen is None:
                return {"text": values["text"], "label": values.get("label")}
            if isinstance(chosen, list):
                names = _names(values.get("options"))
                chosen = [names.get(one, one) if isinstance(one, int) else one for one in chosen]
            return {"text": values["text"], "label": chosen}

        return converted(raw, columns, ("text", "label"), convert, nested=("accept", "options"))

    def read(self, cells: Cells) -> Row:
        return TextLabel().read(cells)


def _names(options: Any) -> Mapping[Any, str]:
    """The texts of options by their id."""
    given = options if isinstance(options, list) else []
    return {
        option["id"]: str(option.get("text", option["id"]))
        for option in given
        if isinstance(option, Mapping) and isinstance(option.get("id"), int)
    }
