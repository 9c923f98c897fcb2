"""opennre: text or tokens, with the entities `h` and `t`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from peftlab.data.formats.cells import Cells, Kind, Unreadable, parsed
from peftlab.data.formats.conversion import converted
from peftlab.data.formats.relation import Relation
from peftlab.data.formats.row_format import Row, RowFormat
from peftlab.data.reading.raw_splits import RawSplit


class OpenNRE(RowFormat):
    """An entity is `{name, id, pos: [start, end]}`, the end excluded, in tokens or in characters of
    the text; or, as FewRel has it, `[name, id, [[every token], ...]]`, of which the first mention
    counts.
    """

    name: ClassVar[str] = "opennre"
    tasks: ClassVar[tuple[str, ...]] = ("relation-extraction",)
    roles: ClassVar[Mapping[str, bool]] = {
        "text": False, "tokens": False, "head": True, "tail": True, "label": True,
    }  # fmt: skip
    usual: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "text": ("text", "sentence"), "tokens": ("token", "tokens"), "head": ("h", "head"),
        "tail": ("t", "tail"), "label": ("relation", "label"),
    }  # fmt: skip
    targets: ClassVar[frozenset[str]] = frozenset({"label"})
    gives: ClassVar[Mapping[str, Kind]] = Relation.gives
    becomes: ClassVar[type[RowFormat] | None] = Relation

    def lacking(self, columns: Mapping[str, str]) -> str | None:
        if "text" not in columns and "tokens" not in columns:
            return "tokens"
        return super().lacking(columns)

    def fits_rows(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        heads = [_position(parsed(row.get("head"))) for row in rows]
        return any(position is not None for position in heads)

    def reshape(self, raw: RawSplit, columns: Mapping[str, str]) -> RawSplit:
        gives = tuple(role for role in self.roles if role in columns)
        return converted(raw, columns, gives, _row, nested=("tokens", "head", "tail"))

    def read(self, cells: Cells) -> Row:
        return Relation().read(cells)

    def input_row(self, row: Mapping[str, Any]) -> Row:
        by_role = dict(row)
        for role, names in self.usual.items():
            by_role.setdefault(role, next((row[n] for n in names if n in row), None))
        if _position(by_role["head"]) is None or _position(by_role["tail"]) is None:
            return Relation().input_row(row)
        given = {role: value for role, value in by_role.items() if value is not None}
        return Relation().input_row({**given, **_row(given)})


def _row(values: Mapping[str, Any]) -> Row:
    row = dict(values)
    # Tokens are what positions count where a row has both.
    if row.get("tokens") is not None and "text" in row:
        row["text"] = None
    for role in ("head", "tail"):
        position = _position(row[role])
        row[role] = (
            Unreadable(row[role], f"the {role} is {row[role]!r:.60}, which has no pos [start, end]")
            if position is None
            else list(position)
        )
    return row


def _position(entity: Any) -> tuple[int, int] | None:
    if isinstance(entity, Mapping):
        given = entity.get("pos")
        if isinstance(given, list) and len(given) == 2 and all(map(_is_whole, given)):
            return given[0], given[1]
    if isinstance(entity, list) and len(entity) == 3 and isinstance(entity[2], list):
        mention = entity[2][0] if entity[2] else None
        if not (isinstance(mention, list) and mention and all(map(_is_whole, mention))):
            return None
        if mention == list(range(mention[0], mention[-1] + 1)):
            return mention[0], mention[-1] + 1
    return None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
