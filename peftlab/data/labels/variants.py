"""Labels that differ only in case, Unicode form, or characters that are not seen."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from peftlab.errors import DataError

_SHOWN = 5
_SELECTORS = frozenset(map(chr, range(0xFE00, 0xFE10)))
"""Variation selectors: how the character before them is drawn."""
_AROUND = " \t\n\"'`.,;:\u00b4\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb"


def refuse_variants(names: Iterable[str], where: str, column: str) -> None:
    """Raise `DataError` with the pairs of names that people take for one label."""
    of_key: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        of_key.setdefault(_key(name), []).append(name)
    pairs = [same for same in of_key.values() if len(same) > 1]
    if not pairs:
        return
    shown = "; ".join(" and ".join(map(_shown, same)) for same in pairs[:_SHOWN])
    more = f"; and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
    raise DataError(
        f"{where}: labels of column {column!r} differ only in case, Unicode form, or characters "
        f"around them: {shown}{more}. Write each label in one way, or list all of them among "
        "data.label_names=[...] where they are different classes."
    )


def _key(name: str) -> str:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    spaced = re.sub(r"\s+", " ", folded)
    unseen = ("Cf", "Cc")
    plain = "".join(
        mark
        for mark in spaced
        if unicodedata.category(mark) not in unseen and mark not in _SELECTORS
    ).strip()
    return plain.strip(_AROUND) or plain


def _shown(name: str) -> str:
    """A name with its unusual characters as escapes, so that two differ to the eye."""
    return ascii(name)[:60] if not name.isascii() else f"{name!r:.60}"
