"""Slices of splits, `train[:80%]` or `train[:100]+test[:50]`, as `datasets` writes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from peftlab.data.reading.raw_splits import RawSplit, join
from peftlab.data.reading.views import count_rows, rows_between
from peftlab.errors import ConfigError, DataError

_SLICED = re.compile(r"(?P<name>[^\[\]]+)\[(?P<slice>[^\[\]]*)\]")


@dataclass(frozen=True, slots=True)
class Part:
    """A split of a source, or the rows of it that `rows` ("" for all, ":80%") describes."""

    name: str
    rows: str = ""

    def __str__(self) -> str:
        return f"{self.name}[{self.rows}]" if self.rows else self.name

    def range(self, count: int, key: str) -> tuple[int, int]:
        """The first row and the one after the last, of `count`. Raises `ConfigError`."""
        if not self.rows:
            return 0, count
        from datasets import ReadInstruction

        try:
            instruction = ReadInstruction.from_spec(f"split[{self.rows}]")
            (absolute,) = instruction.to_absolute({"split": count})
        except (ValueError, AssertionError) as error:
            raise ConfigError(
                f"{key}={self}: {' '.join(str(error).split()).rstrip('.')[:160]}; write rows as in "
                f"{self.name}[:80%] or {self.name}[100:200] (it has {count} rows)."
            ) from None
        return absolute.from_ or 0, count if absolute.to is None else absolute.to


def parse_parts(text: str, known: Collection[str]) -> tuple[Part, ...]:
    """The parts that a value of `data.splits` names; a known split may have any name."""
    if text in known or ("[" not in text and "+" not in text):
        return (Part(text),)
    parts = []
    for piece in text.split("+"):
        sliced = _SLICED.fullmatch(piece.strip())
        parts.append(Part(sliced["name"], sliced["slice"]) if sliced else Part(piece.strip()))
    return tuple(parts)


def open_parts(
    raw: Mapping[str, Callable[[], RawSplit]], chosen: Mapping[str, Sequence[Part]]
) -> dict[str, RawSplit]:
    """The rows of train, validation and test. Raises `ConfigError` where two of them share rows."""
    opened = {part.name: raw[part.name]() for parts in chosen.values() for part in parts}
    sliced = {part.name for parts in chosen.values() for part in parts if part.rows}
    counts = {name: count_rows(opened[name]) for name in sliced}
    taken: list[tuple[str, Part, int, int]] = []
    splits: dict[str, RawSplit] = {}
    for split, parts in chosen.items():
        rows = []
        for part in parts:
            if part.name not in sliced:
                rows.append(opened[part.name])
                continue
            start, stop = part.range(counts[part.name], f"data.splits.{split}")
            if stop <= start:
                raise DataError(f"data.splits.{split}={part} has no rows.")
            _check_apart(taken, split, part, start, stop)
            taken.append((split, part, start, stop))
            rows.append(rows_between(opened[part.name], start, stop))
        splits[split] = join(rows)
    return splits


def _check_apart(
    taken: Sequence[tuple[str, Part, int, int]], split: str, part: Part, start: int, stop: int
) -> None:
    for other, other_part, first, last in taken:
        low, high = max(start, first), min(stop, last)
        if other_part.name == part.name and low < high:
            raise ConfigError(
                f"data.splits.{other}={other_part} and data.splits.{split}={part} share rows "
                f"{low + 1} to {high} of {part.name}; let one begin where the other ends."
            )
