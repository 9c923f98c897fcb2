"""A .txt file with a JSON object a line, as OpenNRE's data are."""

from __future__ import annotations

import json
from itertools import islice

from peftlab.config.reader import ReaderConfig
from peftlab.data.reading.annotated.lines import lines_of
from peftlab.data.reading.data_file import DataFile
from peftlab.errors import DataError

_SEEN = 5


def recognises(file: DataFile) -> bool:
    """Whether each of the first lines is a JSON object with a relation."""
    try:
        lines = [line for _, line in islice(lines_of(file, ReaderConfig()), _SEEN) if line.strip()]
        rows = [json.loads(line) for line in lines]
    except (DataError, ValueError, RecursionError):
        return False
    return bool(rows) and all(isinstance(row, dict) and "relation" in row for row in rows)
