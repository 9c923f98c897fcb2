"""Lines of text files, decoded as every text file is."""

from __future__ import annotations

from collections.abc import Iterator

from peftlab.config.reader import ReaderConfig
from peftlab.data.reading.data_file import DataFile
from peftlab.data.reading.encodings import decoded_lines


def lines_of(file: DataFile, options: ReaderConfig) -> Iterator[tuple[int, str]]:
    """Numbered lines with their ends. Raises `DataError`."""
    yield from decoded_lines(file, options)
