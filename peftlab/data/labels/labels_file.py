"""`labels.json`: the names of the labels, beside the data."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from peftlab.errors import DataError

LABELS_FILE = "labels.json"


def read_labels_file(folder: Path) -> tuple[str, ...] | None:
    """The list of names in `labels.json`, or None without such a file."""
    path = folder / LABELS_FILE
    if not path.is_file():
        return None
    try:
        names = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not readable JSON: {error}.") from None
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise DataError(f'{path} must be a list of label names, like ["negative", "positive"].')
    doubled = next((name for name, count in Counter(names).items() if count > 1), None)
    if doubled is not None:
        raise DataError(f"{path} names {doubled!r} twice.")
    return tuple(names)
