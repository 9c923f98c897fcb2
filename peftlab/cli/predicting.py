"""The command `predict`: inputs with their places, answers on the screen or in a file."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.cli import texts
from peftlab.cli.inputs import inputs_of
from peftlab.cli.screen import Screen, finite
from peftlab.errors import ConfigError
from peftlab.files import replacing

if TYPE_CHECKING:
    from peftlab.config.reader import ReaderConfig


def predict(
    folder: str, words: Sequence[str], options: Namespace
) -> tuple[Any, Callable[[Screen], None]]:
    """Answer words or the rows of a file; returns JSON values and how to show them."""
    from peftlab.pipeline.run import open_run

    out = None if options.output is None else _free(Path(options.output))
    run = open_run(folder)
    given = inputs_of(words, options.file, _reader_of(run, options.file))
    with given.located():
        answers = run.predict(given.rows)
    results = [{"input": row, **answer} for row, answer in zip(given.rows, answers, strict=True)]
    if out is not None:
        _write(results, out)
        said = f"{len(results)} answers in {out}"
        return {"output": str(out), "rows": len(results)}, lambda screen: screen.line(said)
    lines = [run.task.answer_text(answer) for answer in answers]
    return results, lambda screen: texts.show_answers(screen, results, lines)


def _reader_of(run: Any, file: str | None) -> ReaderConfig | None:
    """How the run's own data were read, for a file of the same kind."""
    if file is None or Path(file).suffix != Path(run.config.data.source).suffix:
        return None
    reader: ReaderConfig = run.config.data.reader
    return reader


def _free(path: Path) -> Path:
    """A path for a new file. Raises `ConfigError`, before anything is computed."""
    if path.exists():
        raise ConfigError(f"{path} exists and is not overwritten; name another file.")
    if not path.parent.is_dir():
        raise ConfigError(f"{path} cannot be written: {path.parent} is not a folder.")
    return path


def _write(results: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Write a line of JSON for each row; the file appears whole or not at all."""
    lines = (json.dumps(finite(row), ensure_ascii=False, default=str) for row in results)
    with replacing(file) as partial:
        partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
