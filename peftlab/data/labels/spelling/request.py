"""What a configuration and a source say about labels before any row is read."""

from __future__ import annotations

from dataclasses import dataclass

from peftlab.config.tasks.options import LabelKind


@dataclass(frozen=True, slots=True)
class LabelRequest:
    """`kind` of a row's label; `separator` between labels in a cell, auto, or None: never divided.

    `declared` are the names of 0, 1, ... and `origin` is where they stand; `encoded`: the values
    are their positions, as in a ClassLabel. `none_is_class`: the task has a class for none. `tags`:
    a label for each token.
    """

    kind: LabelKind = "one"
    separator: str | None = "auto"
    declared: tuple[str, ...] | None = None
    origin: str = ""
    encoded: bool = False
    none_is_class: bool = False
    tags: bool = False

    @property
    def hint(self) -> str:
        return "; for numbers set task.problem=regression" if self.kind == "auto" else ""
