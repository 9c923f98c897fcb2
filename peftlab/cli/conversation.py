"""A conversation with a run: each line of stdin is answered as it comes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from peftlab.cli.screen import Screen
from peftlab.errors import DataError

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
