"""Which split a name means: of a file, a sheet, a key, or a value in a column."""

from __future__ import annotations

import re
from collections.abc import Collection

from peftlab.errors import DataError

USUAL_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development", "eval", "evaluation"),
    "test": ("test", "testing"),
}
_MEANT = {name: split for split, names in USUAL_NAMES.items() for name in names}


def exact_split(name: str) -> str | None:
    """The split that a whole name means, ignoring case: `dev` means validation."""
    return _MEANT.get(name.strip().lower())


def splits_in(name: str) -> set[str]:
    """The splits that words of a name mean: `olid-training-v1.0` means train."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)
    lowered = {word.lower().removesuffix("set") or word.lower() for word in words}
    return {_MEANT[word] for word in lowered if word in _MEANT}


def pick_split(splits: Collection[str], wanted: str, where: str, key: str) -> str:
    """The split `wanted`, or one of another usual name for it. Raises `DataError`."""
    if wanted in splits:
        return wanted
    usual = find_usual(splits, wanted, where)
    if usual is not None:
        return usual
    known = ", ".join(splits)
    raise DataError(
        f"{where} has no split {wanted!r} ({key}); its splits are: {known}. "
        f"A folder's splits are its files' names without extensions."
    )


def find_usual(splits: Collection[str], split: str, where: str) -> str | None:
    """The split with a usual name of `split`, else the one whose name has it as a word, or None.

    Raises `DataError` for two of them.
    """
    matches = [name for name in splits if exact_split(name) == split]
    if not matches:
        matches = [name for name in splits if splits_in(name) == {split}]
    if len(matches) > 1:
        raise DataError(
            f"{where} has {' and '.join(matches)}, which both mean {split!r}; keep one or name it "
            f"with data.splits.{split}=..."
        )
    return matches[0] if matches else None
