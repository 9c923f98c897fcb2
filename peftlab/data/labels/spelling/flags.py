"""Values that say whether a row has a label: 0 and 1, true and false, yes and no."""

from __future__ import annotations

from typing import Any

_WORDS = {
    "1": True, "0": False, "1.0": True, "0.0": False, "true": True, "false": False,
    "yes": True, "no": False, "y": True, "n": False, "t": True, "f": False,
}  # fmt: skip


def flag_of(value: Any) -> bool | None:
    """Whether a value says yes or no; None for any other value."""
    if isinstance(value, str):
        return _WORDS.get(value.strip().lower())
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    return None
