"""Whether quotes around fields are syntax or text, by what the rows of a file have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from peftlab.data.reading.separated.fields import rows_of

_NEUTRAL = re.compile(r"\s*(|NA|NaN|nan|NULL|null|None|[-+]?[\d.]+(e[-+]?\d+)?)\s*", re.IGNORECASE)
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_CLEAN_ROWS = 8
"""So many rows beside those in doubt must show what a column's values are."""


@dataclass(slots=True)
class Evidence:
    """What the rows of a file that is complete with quotes say about them.

    `needed` counts rows that are complete only with quotes; `merged` are rows over several lines of
    which each is a complete row without them, as line number and lines.
    """

    delimiter: str
    width: int
    needed: int = 0
    merged: list[tuple[int, list[str]]] = field(default_factory=list)
    unneeded: dict[int, int] = field(default_factory=dict)
    """By column: the first line of a field in quotes that would be the same field without."""
    bare: set[int] = field(default_factory=set)
    """Columns with a text that has no quotes."""
    values: list[set[str]] = field(default_factory=list)
    clean: int = 0

    @staticmethod
    def of(lines: Callable[[], Iterator[tuple[int, str]]], delimiter: str, width: int) -> Evidence:
        """Read all rows once, with quotes."""
        found = Evidence(delimiter, width, values=[set() for _ in range(width)])
        taken: list[str] = []
        for i, (start, fields) in enumerate(rows_of(lines(), delimiter, '"', taken)):
            if i:
                found._add(start, fields, taken)
        return found

    def _add(self, start: int, fields: list[str], taken: list[str]) -> None:
        if len(taken) == 1 and '"' not in taken[0]:
            self._add_plain(fields)
            return
        by_line = [line.rstrip("\r\n").split(self.delimiter) for line in taken]
        if any(len(parts) != self.width for parts in by_line):
            self.needed += 1
        elif len(by_line) > 1 and not any('""' in line for line in taken):
            self.merged.append((start, list(taken)))
            outside = _QUOTED.sub("", "".join(taken)).rstrip("\r\n").split(self.delimiter)
            self.bare |= {i for i, text in enumerate(outside) if not _NEUTRAL.fullmatch(text)}
        elif len(by_line) > 1:
            self.needed += 1
        else:
            self._add_one_line(start, by_line[0])

    def _add_plain(self, fields: list[str]) -> None:
        self.clean += 1
        for i, (text, known) in enumerate(zip(fields, self.values, strict=True)):
            if text in known:
                continue
            if i not in self.bare and not _NEUTRAL.fullmatch(text):
                self.bare.add(i)
            if len(known) < 1000:
                known.add(text)

    def _add_one_line(self, start: int, raw: list[str]) -> None:
        self.clean += 1
        for i, text in enumerate(raw):
            if text.startswith('"'):
                if '""' not in text[1:-1]:
                    self.unneeded.setdefault(i, start)
            elif not _NEUTRAL.fullmatch(text):
                self.bare.add(i)
            if len(self.values[i]) < 1000:
                self.values[i].add(text)

    def verdict(self, where: str) -> tuple[Literal["quotes", "text"], str]:
        """What quotes are, and the question that stays open, if one does."""
        if self.merged and len(self.merged) >= self.needed:
            known = self._lines_have_known_values()
            if known and not self.needed:
                return "text", ""
            if known is not False and (self.bare or self.needed):
                line, lines = self.merged[0]
                return "quotes", (
                    f"{where}:{line} begins a field with a quote that is closed {len(lines) - 1} "
                    "line(s) later, and each of these lines is a complete row by itself. Are they "
                    "rows, and quotes text? Set data.reader.quotechar=null. Are they one field in "
                    "quotes? Set data.reader.quotechar='\"'."
                )
        mixed = [i for i in self.unneeded if i in self.bare]
        if mixed and not self.needed:
            line = self.unneeded[mixed[0]]
            return "quotes", (
                f"{where}:{line} has column {mixed[0] + 1} in quotes, which other rows have not, "
                "and nothing in it needs them. Are they part of the text? Set "
                "data.reader.quotechar=null. Are they only around it? Set "
                "data.reader.quotechar='\"'."
            )
        return "quotes", ""

    def _lines_have_known_values(self) -> bool | None:
        """Whether lines in doubt have the values of other rows, in a column with few of them.

        None where no column tells: too few rows are clear, or some lines have such values only.
        """
        few = [i for i, known in enumerate(self.values) if len(known) <= self.clean / 3]
        if self.clean < _CLEAN_ROWS or not few:
            return None
        rows = [[line.rstrip("\r\n").split(self.delimiter) for line in taken]
                for _, taken in self.merged]  # fmt: skip
        fits = [[all(parts[i] in self.values[i] for parts in lines) for lines in rows] for i in few]
        if any(all(column) for column in fits):
            return True
        return None if any(any(column) for column in fits) else False
