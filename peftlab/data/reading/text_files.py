"""Plain text: one row a line."""

from __future__ import annotations

from functools import partial

from peftlab.config.reader import ReaderConfig
from peftlab.data.reading.data_file import DataFile
from peftlab.data.reading.encodings import decoded_lines
from peftlab.data.reading.raw_splits import Numbered, RawSplit, from_records


def open_txt(file: DataFile, options: ReaderConfig) -> RawSplit:
    """The lines of a file, in the column `text`. Raises `DataError`."""
    return from_records(
        file.where, partial(read_txt, file, options), counts_lines=True, all_text=True,
        nothing="only blank lines",
    )  # fmt: skip


def read_txt(file: DataFile, options: ReaderConfig) -> Numbered:
    """One row per line, in the column `text`; blank lines are skipped."""
    for number, line in decoded_lines(file, options):
        if line.strip():
            yield number, {"text": line.rstrip("\r\n")}
