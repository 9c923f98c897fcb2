"""The index of each label name, for rows by the thousand and labels by the thousand."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache


@lru_cache(maxsize=8)
def positions(names: tuple[str, ...]) -> Mapping[str, int]:
    """Each name's index."""
    return {name: index for index, name in enumerate(names)}
