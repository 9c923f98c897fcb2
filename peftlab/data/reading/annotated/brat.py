"""brat: texts (.txt) with their annotations in standoff files (.ann) beside them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from peftlab.config.reader import ReaderConfig
from peftlab.data.formats.cells import Unreadable
from peftlab.data.reading.annotated.lines import lines_of
from peftlab.data.reading.data_file import DataFile, data_file
from peftlab.data.reading.raw_splits import Numbered, RawSplit
from peftlab.errors import DataError

logger = logging.getLogger("peftlab")


@dataclass(frozen=True, slots=True)
class _Documents(RawSplit):
    """A row a document, which messages name by its file."""

    texts: tuple[Path, ...] = ()

    def location(self, number: int) -> str:
        return str(self.texts[number - 1])


def recognises(folder: DataFile) -> bool:
    """Whether the folder, or each of its splits' folders, has texts with annotations."""
    return bool(_folders(folder.path))


def open_brat(folder: DataFile, options: ReaderConfig) -> Mapping[str, RawSplit]:
    """The splits (`train` where there are no folders of splits), with `id`, `text` and `spans`.

    Texts without a file of annotations are left out, and counted in the log. Raises `DataError`
    naming file and line.
    """
    return {split: _open(inner, options) for split, inner in _folders(folder.path).items()}


def _folders(folder: Path) -> dict[str, Path]:
    if any(folder.glob("*.ann")):
        return {"train": folder}
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    return {path.name: path for path in inner if any(path.glob("*.ann"))}


def _open(folder: Path, options: ReaderConfig) -> RawSplit:
    texts = sorted(folder.glob("*.txt"))
    annotated = tuple(path for path in texts if path.with_suffix(".ann").is_file())
    if len(annotated) < len(texts):
        logger.warning("%s: %d of %d texts have no file of annotations (.ann) and are left out",
                       folder, len(texts) - len(annotated), len(texts))  # fmt: skip
    alone = [path for path in folder.glob("*.ann") if not path.with_suffix(".txt").is_file()]
    if alone:
        raise DataError(f"{min(alone)} has no text beside it ({min(alone).stem}.txt).")

    def rows(_: Sequence[str]) -> Numbered:
        for number, path in enumerate(annotated, start=1):
            text = "".join(line for _, line in lines_of(data_file(path), options))
            yield number, {"id": path.stem, "text": text, "spans": _spans(path, text, options)}

    return _Documents(str(folder), ("id", "text", "spans"), rows, own_keys=True, texts=annotated)


def _spans(path: Path, text: str, options: ReaderConfig) -> Any:
    """Objects with start, end, label and text; unreadable where a span is in pieces."""
    file = data_file(path.with_suffix(".ann"))
    if not path.with_suffix(".ann").stat().st_size:
        return []
    spans: list[dict[str, Any]] = []
    for number, line in lines_of(file, options):
        if not line.startswith("T"):
            continue  # Relations, events, attributes and notes.
        try:
            _, placed, quoted = line.rstrip("\r\n").split("\t")
            label, _, offsets = placed.partition(" ")
            ends = [(int(start), int(end)) for start, end in
                    (piece.split() for piece in offsets.split(";"))]  # fmt: skip
        except ValueError:
            raise DataError(
                f"{file.where}:{number}: {line.strip()!r:.60} is not ID, tab, LABEL START END, "
                "tab, text."
            ) from None
        gaps = [text[a[1] : b[0]] for a, b in pairwise(ends)]
        if any(gap.strip() for gap in gaps):
            why = f"{file.where}:{number}: the entity {quoted!r:.60} is in several pieces"
            return Unreadable(text, f"{why}, and tags mark words that stand together")
        spans.append({"start": ends[0][0], "end": ends[-1][1], "label": label, "text": quoted})
    return spans
