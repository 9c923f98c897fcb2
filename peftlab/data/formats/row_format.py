"""What a format of rows is: which columns it has, and what a task is given of a row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from peftlab.data.formats.cells import Cells, Kind

Row = dict[str, Any]


class RowFormat(ABC):
    """One format. `roles` are the columns it reads, `gives` what it makes of them for the task.

    Where a row has `labels`, `check_rows` reads that role itself: label names are known only when
    every row has been seen.
    """

    name: ClassVar[str]
    roles: ClassVar[Mapping[str, bool]]
    """Role of a column to whether every row must have it."""
    usual: ClassVar[Mapping[str, tuple[str, ...]]]
    """Role to the column names that it is found by, the likeliest first, in lower case."""
    targets: ClassVar[frozenset[str]] = frozenset()
    """Roles that hold what is to be predicted; rows to predict lack them."""
    gives: ClassVar[Mapping[str, Kind]]
    """Column of a checked row to its kind, without the labels."""
    labels: ClassVar[str | None] = None
    """The role, of a column and of a checked row, that holds a class or a class for each token."""

    @property
    def finding(self) -> tuple[str, ...]:
        """The roles in the order in which columns are found: the first takes what two may mean."""
        return tuple(self.roles)

    def find(
        self, available: Sequence[str], explicit: Mapping[str, str], where: str
    ) -> dict[str, str]:
        """Role to column, as many as are there: those named explicitly, else by usual names."""
        chosen = dict(explicit)
        for role in self.finding:
            if role not in chosen:
                named = by_usual_name(self.usual[role], available, list(chosen.values()))
                if named:
                    chosen[role] = named[0]
        return {role: chosen[role] for role in self.roles if role in chosen}

    def lacking(self, found: Mapping[str, str]) -> str | None:
        """A role without which these columns are not of this format; None where they are."""
        return next((r for r, required in self.roles.items() if required and r not in found), None)

    def fits(self, first: Mapping[str, Any]) -> bool:
        """Whether the first row's values, by role, look like this format's."""
        return True

    @abstractmethod
    def read(self, cells: Cells) -> Row:
        """What a row gives, but for its labels; `cells` gathers what is wrong with it."""

    def asked(self, row: Mapping[str, Any]) -> Row:
        """A row to predict by role, its targets missing perhaps, as the task reads it.

        Raises `DataError`. As it is where it lacks columns of this format: the task will say what
        it needs, and a row that is given as `gives` has it needs no reading.
        """
        needed = [role for role in self.roles if self.roles[role] and role not in self.targets]
        if not all(row.get(role) is not None for role in needed):
            return dict(row)
        cells = Cells(row, {role: role for role in row}, from_text=True, asked=True)
        found = self.read(cells)
        cells.raise_any()
        return {**row, **found}


def by_usual_name(
    names: Sequence[str], available: Sequence[str], taken: Sequence[str]
) -> list[str]:
    """The columns called by one of these names, whatever their case, in the names' order."""
    lowered = {name.lower(): name for name in available if name not in taken}
    return [lowered[name] for name in names if name in lowered]
