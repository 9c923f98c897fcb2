"""The base class of row formats: their columns, and the values that a task gets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from peftlab.data.formats.cells import Cells, Kind
from peftlab.data.reading.raw_splits import RawSplit

Row = dict[str, Any]


class RowFormat(ABC):
    """One format. `roles` are the columns that it reads, `gives` the values for the task.

    The role of `labels` is read by `check_rows`: label names are known only after all rows.
    """

    name: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]]
    """The tasks that it serves."""
    roles: ClassVar[Mapping[str, bool]]
    """Column roles, and whether every row must have each."""
    not_read: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Roles that some of the tasks do not read, each with those tasks."""
    before: ClassVar[tuple[str, ...]] = ()
    """Formats that `auto` tries after this one, for a format of another package."""
    usual: ClassVar[Mapping[str, tuple[str, ...]]]
    """The usual column names of each role, in lower case, the likeliest first."""
    targets: ClassVar[frozenset[str]] = frozenset()
    """Roles of targets, which rows to predict may lack."""
    gives: ClassVar[Mapping[str, Kind]]
    """The columns of a checked row and their kinds, without labels."""
    unread: ClassVar[Mapping[str, str]] = {}
    """Columns that rows of this format may seem to mean, in lower case, and why none is read."""
    labels: ClassVar[str | None] = None
    """The role of labels, one per row or per token, in columns and checked rows."""

    becomes: ClassVar[type[RowFormat] | None] = None
    """The format of the rows that `reshape` makes of these; None: rows are read as they are."""

    @property
    def search_order(self) -> tuple[str, ...]:
        """The order in which roles choose columns; earlier ones take ambiguous columns."""
        return tuple(self.roles)

    def find(
        self, available: Sequence[str], explicit: Mapping[str, str], where: str
    ) -> dict[str, str]:
        """The columns of the available roles: explicit ones, else those with usual names."""
        chosen = dict(explicit)
        for role in self.search_order:
            if role not in chosen:
                matches = by_usual_name(self.usual[role], available, list(chosen.values()))
                if matches:
                    chosen[role] = matches[0]
        return {role: chosen[role] for role in self.roles if role in chosen}

    def lacking(self, columns: Mapping[str, str]) -> str | None:
        """A required role that these columns lack, or None."""
        return next(
            (r for r, required in self.roles.items() if required and r not in columns), None
        )

    def fits(self, first: Mapping[str, Any]) -> bool:
        """Whether the first row's values, by role, match this format."""
        return True

    def fits_rows(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the first rows' values, by role, match this format; there is at least one."""
        return self.fits(rows[0])

    def reshape(self, raw: RawSplit, columns: Mapping[str, str]) -> RawSplit:
        """A split of the rows that `becomes` reads: its roles are the names of their columns.

        `columns` are those of this format's roles in the split. Rows may be joined or left out;
        one that cannot be used holds `Unreadable`. Raises `DataError`.
        """
        return raw

    @abstractmethod
    def read(self, cells: Cells) -> Row:
        """The row for the task, without labels; `cells` collects its problems."""

    def input_row(self, row: Mapping[str, Any]) -> Row:
        """A row to predict by role, possibly without targets, as the task reads it.

        A row that lacks columns of this format is returned unchanged: it may already have the
        columns of `gives`, and the task checks what it needs. Raises `DataError`.
        """
        needed = [role for role in self.roles if self.roles[role] and role not in self.targets]
        if not all(row.get(role) is not None for role in needed):
            return dict(row)
        cells = Cells(row, {role: role for role in row}, from_text=True, to_predict=True)
        values = self.read(cells)
        cells.raise_any()
        return {**row, **values}


def by_usual_name(
    names: Sequence[str], available: Sequence[str], taken: Sequence[str]
) -> list[str]:
    """The columns with one of these names, ignoring case, in the order of the names."""
    lowered = {name.lower(): name for name in available if name not in taken}
    return [lowered[name] for name in names if name in lowered]
