"""Output: rich tables on a terminal, aligned text elsewhere, or JSON."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

Cell = str | int | float | None


class Screen:
    """Writes to stdout, with rich tables on a terminal; NO_COLOR removes their colours."""

    def __init__(self) -> None:
        self.rich = sys.stdout.isatty()

    def line(self, text: str = "") -> None:
        """One line as it is."""
        print(text)

    def heading(self, text: str) -> None:
        """A heading, after a blank line."""
        if self.rich:
            self._console().print(f"\n{_escaped(text)}", style="bold", highlight=False)
        else:
            print(f"\n{text}")

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Columns of text and numbers; numbers are aligned to the right."""
        cells = [[shown(cell) for cell in row] for row in rows]
        numeric = [
            bool(rows) and all(isinstance(row[i], int | float | None) for row in rows)
            for i in range(len(heads))
        ]
        if self.rich:
            self._rich_table(heads, cells, numeric)
            return
        widths = [max(len(line[i]) for line in [list(heads), *cells]) for i in range(len(heads))]
        for line in [list(heads), ["-" * width for width in widths], *cells]:
            placed = [
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(line, widths, numeric, strict=True)
            ]
            print("  ".join(placed).rstrip())

    def tree(self, values: Mapping[str, Any], indent: str = "") -> None:
        """A nested mapping, one line per value."""
        for key, value in values.items():
            if isinstance(value, Mapping) and value:
                print(f"{indent}{key}:")
                self.tree(value, f"{indent}  ")
            elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
                print(f"{indent}{key}:")
                for item in value:
                    print(f"{indent}  - {', '.join(f'{k} {shown(v)}' for k, v in item.items())}")
            else:
                print(f"{indent}{key}: {shown(value)}")

    def _console(self) -> Any:
        from rich.console import Console

        return Console()

    def _rich_table(
        self, heads: Sequence[str], cells: list[list[str]], numeric: Sequence[bool]
    ) -> None:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for head, right in zip(heads, numeric, strict=True):
            table.add_column(_escaped(head), justify="right" if right else "left")
        for row in cells:
            table.add_row(*map(_escaped, row))
        self._console().print(table)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def shown(value: Any) -> str:
    """A value for people: counts with separators, fractions with four digits, lists in one line."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value)) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {shown(inner)}" for key, inner in value.items()) or "none"
    return str(value)


def write_json(value: Any) -> None:
    """Print one JSON document; NaN and infinities become null."""
    print(json.dumps(finite(value), indent=2, ensure_ascii=False, default=str))


def finite(value: Any) -> Any:
    """A JSON value with null for NaN and infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
