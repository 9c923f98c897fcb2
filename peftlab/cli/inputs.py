"""The inputs of `predict`: words of the command line, a file, or a pipe."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.errors import ConfigError, DataError

if TYPE_CHECKING:
    from peftlab.config.reader import ReaderConfig

Row = str | Mapping[str, Any]

LINES_OF_TEXT = ("", ".txt")
"""Suffixes of files without columns, unless a reader knows their content: a line is an input."""

_ROW = re.compile(r"\brow (\d+)( to predict)?\b")


@dataclass(frozen=True, slots=True)
class Inputs:
    """Texts, or rows by column, and where each stands; None: not in a file."""

    rows: Sequence[Row]
    place: Callable[[int], str] | None = None

    @contextmanager
    def located(self) -> Iterator[None]:
        """Errors that number a row to predict name its place in the file."""
        from peftlab.data.bad_rows import BadRows

        try:
            yield
        except BadRows as bad:
            raise self._error(bad) from None
        except DataError as error:
            if self.place is None:
                raise
            place = self.place
            text = _ROW.sub(
                lambda found: place(int(found[1]) - 1) if found[2] else found[0], str(error)
            )
            raise DataError(text) from None

    def _error(self, bad: Any) -> DataError:
        place = self.place or (lambda index: f"row {index + 1} to predict")
        # Nothing of a file to predict is left out, so that answers and rows stay side by side.
        error: DataError = bad.located(place, len(bad.reasons))
        return error


def inputs_of(words: Sequence[str], file: str | None, reader: ReaderConfig | None = None) -> Inputs:
    """What to answer. Raises `ConfigError`, and `DataError` naming file and line."""
    if words and file is not None:
        raise ConfigError("peftlab predict takes texts or --file, not both.")
    if words:
        return Inputs(list(words))
    if file is not None and file != "-":
        inputs, source = _from_file(Path(file), reader), file
    elif sys.stdin is None or sys.stdin.isatty():
        raise ConfigError(
            "peftlab predict needs inputs: texts after RUN, --file, or lines on stdin."
        )
    else:
        inputs, source = _from_stdin(), "stdin"
    if not inputs.rows:
        raise DataError(f"{source} is empty; give at least one text.")
    return inputs


def _from_file(path: Path, reader: ReaderConfig | None) -> Inputs:
    from peftlab.config.reader import ReaderConfig
    from peftlab.data.formats.chat_turns import without_nulls
    from peftlab.data.reading.data_file import data_file
    from peftlab.data.reading.readers import open_path
    from peftlab.data.reading.text_files import read_txt

    try:
        if path.suffix.lower() in LINES_OF_TEXT and path.is_file() and _has_lines(path, reader):
            lines = list(read_txt(data_file(path), reader or ReaderConfig()))
            return _located([row["text"] for _, row in lines], [n for n, _ in lines], f"{path}:")
        opened = open_path(path, reader)
        numbered = list(opened.rows(opened.columns))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None
    rows = [record for _, record in numbered]
    if not opened.own_keys:
        # Arrow gives objects the keys of those in all rows.
        rows = [{name: without_nulls(value) for name, value in row.items()} for row in rows]
    return Inputs(rows, lambda index: opened.location(numbered[index][0]))


def _has_lines(path: Path, reader: ReaderConfig | None) -> bool:
    """Whether a text file is none of the formats that are known by their content, as CoNLL's is."""
    from peftlab.config.reader import ReaderConfig
    from peftlab.data.reading.data_file import data_file
    from peftlab.data.reading.readers import find_reader

    try:
        return find_reader(data_file(path), reader or ReaderConfig()).name == "txt"
    except DataError:
        return True  # reading it says what is wrong


def _located(rows: Sequence[Row], numbers: Sequence[int], before: str) -> Inputs:
    return Inputs(rows, lambda index: f"{before}{numbers[index]}")


def _from_stdin() -> Inputs:
    content = sys.stdin.buffer.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"stdin:{line} is not UTF-8 text.") from None
    lines = enumerate(text.replace("\r\n", "\n").split("\n"), start=1)
    kept = [(number, line) for number, line in lines if line.strip()]
    return _located([line for _, line in kept], [number for number, _ in kept], "stdin:")
