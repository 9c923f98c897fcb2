"""The inputs of `predict`: words of the command line, a file, a pipe, or a conversation."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from peftlab.cli.screen import Screen
from peftlab.errors import ConfigError, DataError

PROMPT = "> "


class Answerer(Protocol):
    """A run, or a stand-in for one."""

    @property
    def task(self) -> Any: ...

    def predict(self, rows: Any) -> list[dict[str, Any]]: ...


def converse(screen: Screen, run: Answerer) -> None:
    """Answer each line of stdin as it comes; errors go to stderr and do not end the session."""
    earlier: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = []
    for text in _lines():
        row = run.task.input_row(text, earlier)
        try:
            (answer,) = run.predict([row])
        except DataError as error:
            print(str(error), file=sys.stderr, flush=True)
            continue
        earlier.append((row, answer))
        screen.line(run.task.answer_text(answer))
        sys.stdout.flush()


def _lines() -> Iterator[str]:
    """Lines that are not blank; with a prompt on a terminal."""
    typed = sys.stdin is not None and sys.stdin.isatty()
    while True:
        if typed:
            print(PROMPT, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline() if sys.stdin is not None else ""
        if not line:
            return
        if line.strip():
            yield line.rstrip("\r\n")


Row = str | Mapping[str, Any]

LINES_OF_TEXT = ("", ".txt")
"""Suffixes of files without columns: every line is one input, whatever the task."""


def rows_to_answer(inputs: Sequence[str], file: str | None) -> list[Row]:
    """Texts, or rows by column. Raises `ConfigError`, and `DataError` naming file and line."""
    if inputs and file is not None:
        raise ConfigError("peftlab predict takes texts or --file, not both.")
    if inputs:
        return list(inputs)
    if file is not None and file != "-":
        rows, source = _from_file(Path(file)), file
    elif sys.stdin is None or sys.stdin.isatty():
        raise ConfigError(
            "peftlab predict needs inputs: texts after RUN, --file, or lines on stdin."
        )
    else:
        rows, source = _from_stdin(), "stdin"
    if not rows:
        raise DataError(f"{source} is empty; give at least one text.")
    return rows


def _from_file(path: Path) -> list[Row]:
    from peftlab.config.reader import ReaderConfig
    from peftlab.data.reading.data_file import data_file
    from peftlab.data.reading.readers import open_path
    from peftlab.data.reading.text_files import read_txt

    try:
        if path.suffix.lower() in LINES_OF_TEXT:
            return [record["text"] for _, record in read_txt(data_file(path), ReaderConfig())]
        opened = open_path(path)
        return [record for _, record in opened.rows(opened.columns)]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None


def _from_stdin() -> list[Row]:
    content = sys.stdin.buffer.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"stdin:{line} is not UTF-8 text.") from None
    return [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()]
