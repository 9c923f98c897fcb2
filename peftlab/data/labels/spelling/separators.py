"""Whether a character in the cells separates labels, or belongs to their names.

A cell is a list only where its parts are seen elsewhere: alone, or in another combination.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

SEPARATORS = ("\n", ";", "|", ",", "/", " ")
_WEAK = frozenset({"/", " "})
"""Characters that names have more often than lists."""
_OPEN, _CLOSE = "([{", ")]}"
# Words that phrases are made of. A space between them separates no labels.
_PHRASES = frozenset({
    "a", "an", "and", "as", "at", "but", "by", "extremely", "fairly", "for", "from", "highly", "in",
    "into", "is", "least", "less", "like", "moderately", "more", "most", "mostly", "neither", "no",
    "non", "nor", "not", "of", "on", "or", "partially", "partly", "per", "quite", "rather",
    "really", "slightly", "so", "some", "somewhat", "strongly", "than", "the", "to", "too", "under",
    "up", "very", "via", "vs", "with", "within", "without",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the cells say of one separator.

    `combined` are the cells that it divides into two parts or more. `likely`: their parts stand
    alone and combine as labels do; else they only may.
    """

    separator: str
    combined: tuple[str, ...]
    likely: bool


def evidence(cells: Sequence[str], separator: str) -> Evidence | None:
    """The evidence that a separator divides some of the different cells; None without any."""
    divided = {cell: _parts(cell, separator) for cell in cells}
    combined = {cell: parts for cell, parts in divided.items() if len(parts) > 1}
    if not combined:
        return None
    parts = {part for several in combined.values() for part in several}
    if separator in _WEAK and any(map(_is_punctuation, parts)):
        return None  # Arts & Crafts
    alone = {several[0] for several in divided.values() if len(several) == 1}
    if separator == " " and any(part.lower() in _PHRASES for part in parts - alone):
        return None
    if separator == " " and not parts & alone and len(parts) > len(combined):
        return None  # Phrases share words; labels that combine are fewer than their combinations.
    # The same labels in another order are no other combination.
    sets = {frozenset(several) for several in combined.values()}
    times = Counter(part for several in sets for part in several)
    known = {part for part in parts if part in alone or times[part] > 1}
    seen = [cell for cell, several in combined.items() if known.intersection(several)]
    if not seen:
        return None
    share = len(parts & alone) / len(parts)
    repeats = any(len(set(several)) < len(several) for several in combined.values())
    likely = len(seen) == len(combined) and len(sets) >= 2 and share >= 2 / 3 and not repeats
    if separator in _WEAK:
        likely &= share == 1 and len(sets) >= 3 and max(times.values()) > 1
    return Evidence(separator, tuple(combined), likely)


def _is_punctuation(part: str) -> bool:
    return all(unicodedata.category(mark)[0] == "P" or mark in "+=" for mark in part)


def _parts(cell: str, separator: str) -> list[str]:
    """The parts of a cell; one where the separator stands inside brackets or quotes."""
    parts = [part.strip() for part in cell.split(separator)]
    parts = [part for part in parts if part]
    if len(parts) < 2 or any(not _balanced(part) for part in parts):
        return [cell]
    return parts


def _balanced(text: str) -> bool:
    if text.count('"') % 2:
        return False
    depth = 0
    for mark in re.findall(r"[()\[\]{}]", text):
        depth += 1 if mark in _OPEN else -1
        if depth < 0:
            return False
    return depth == 0


def pieces_of(cells: Sequence[str], separator: str) -> list[str]:
    """The different parts of all cells."""
    return list(dict.fromkeys(part for cell in cells for part in _parts(cell, separator)))


def decimal_commas(cells: Sequence[str]) -> bool:
    """Whether every comma may stand before the fraction of a number."""
    return all(re.fullmatch(r"[+-]?\d+(?:,\d+)?", cell.strip(), re.ASCII) for cell in cells)
