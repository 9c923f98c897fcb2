"""SemEval-2010 task 8: a numbered, quoted sentence, its relation, a comment, and a blank line."""

from __future__ import annotations

import re
from itertools import islice
from typing import Any

from peftlab.config.reader import ReaderConfig
from peftlab.data.reading.annotated.lines import lines_of
from peftlab.data.reading.data_file import DataFile
from peftlab.data.reading.raw_splits import Numbered, RawSplit, from_records
from peftlab.errors import DataError

_SENTENCE = re.compile(r'(\d+)\s+"(.*)"\s*')
_SEEN = 8


def recognises(file: DataFile) -> bool:
    """Whether the first sentence is numbered, quoted and has both marks."""
    try:
        lines = [line for _, line in islice(lines_of(file, ReaderConfig()), _SEEN) if line.strip()]
    except DataError:
        return False
    return bool(lines) and bool(_SENTENCE.fullmatch(lines[0])) and "<e1>" in lines[0]


def open_blocks(file: DataFile, options: ReaderConfig) -> RawSplit:
    """Rows with `id`, `text` and `label`, which is None in files of sentences alone.

    Raises `DataError` naming the line.
    """
    return from_records(file.where, lambda: _rows(file, options), counts_lines=True)


def _rows(file: DataFile, options: ReaderConfig) -> Numbered:
    start, row = 0, dict[str, Any]()
    for number, line in lines_of(file, options):
        text = line.strip()
        sentence = _SENTENCE.fullmatch(text)
        if sentence:
            if row:
                yield start, row
            start, row = number, {"id": sentence[1], "text": sentence[2], "label": None}
        elif not text or (text.startswith("Comment:") and row):
            continue
        elif not row or row["label"] is not None:
            raise DataError(
                f"{file.where}:{number} holds {text!r:.60} where a numbered sentence in quotes, "
                "its relation or a comment is expected."
            )
        else:
            row["label"] = text
    if row:
        yield start, row
