"""tacred: tokens, with the first and the last token of a subject and of an object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from peftlab.data.formats.cells import Cells, Kind, parsed
from peftlab.data.formats.conversion import converted
from peftlab.data.formats.relation import Relation
from peftlab.data.formats.row_format import Row, RowFormat
from peftlab.data.reading.raw_splits import RawSplit

_ENDS = ("subj_start", "subj_end", "obj_start", "obj_end")


class Tacred(RowFormat):
    """Ends are included, as in the files of TACRED, TACREV and Re-TACRED."""

    name: ClassVar[str] = "tacred"
    tasks: ClassVar[tuple[str, ...]] = ("relation-extraction",)
    roles: ClassVar[Mapping[str, bool]] = {
        "tokens": True, **dict.fromkeys(_ENDS, True), "label": True,
    }  # fmt: skip
    usual: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "tokens": ("token", "tokens"), **{name: (name,) for name in _ENDS},
        "label": ("relation", "label"),
    }  # fmt: skip
    targets: ClassVar[frozenset[str]] = frozenset({"label"})
    gives: ClassVar[Mapping[str, Kind]] = Relation.gives
    becomes: ClassVar[type[RowFormat] | None] = Relation

    def fits_rows(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        return any(isinstance(parsed(row.get("tokens")), list) for row in rows)

    def reshape(self, raw: RawSplit, columns: Mapping[str, str]) -> RawSplit:
        return converted(raw, columns, ("tokens", "head", "tail", "label"), _row,
                         nested=("tokens",))  # fmt: skip

    def read(self, cells: Cells) -> Row:
        return Relation().read(cells)

    def input_row(self, row: Mapping[str, Any]) -> Row:
        known = {role: next((row[n] for n in self.usual[role] if n in row), None)
                 for role in ("tokens", *_ENDS)}  # fmt: skip
        if any(value is None for value in known.values()):
            return Relation().input_row(row)
        return Relation().input_row({**row, **_row({**known, "label": row.get("label")})})


def _row(values: Mapping[str, Any]) -> Row:
    return {
        "tokens": values["tokens"],
        "head": [_whole(values["subj_start"]), _after(values["subj_end"])],
        "tail": [_whole(values["obj_start"]), _after(values["obj_end"])],
        "label": values["label"],
    }


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.strip().isdecimal() else value


def _after(last: Any) -> Any:
    last = _whole(last)
    return last + 1 if isinstance(last, int) and not isinstance(last, bool) else last
