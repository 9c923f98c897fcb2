"""Where labels are read, for questions and problems about them."""

from __future__ import annotations

from dataclasses import dataclass

from peftlab.errors import DataError


@dataclass(frozen=True, slots=True)
class Place:
    """A column of a source; `where` is the source's name."""

    where: str
    column: str

    def question(self, what: str) -> DataError:
        """The error that stops a run until the user says what the labels mean.

        `what` names both readings and the key that chooses.
        """
        return DataError(f"{self.where}: label column {self.column!r} {what}")


def some(values: list[str], most: int = 3) -> str:
    """A few values in quotes, for messages."""
    shown = ", ".join(f"{value!r:.40}" for value in values[:most])
    return shown + (", ..." if len(values) > most else "")
