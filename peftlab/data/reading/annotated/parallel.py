"""Parallel lines: a folder with two files a split, `train.en` and `train.de`, whose lines agree."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import zip_longest

from peftlab.config.reader import ReaderConfig
from peftlab.data.reading.annotated.lines import lines_of
from peftlab.data.reading.data_file import DataFile, data_file
from peftlab.data.reading.raw_splits import Numbered, RawSplit, from_records
from peftlab.data.reading.readers import extensions
from peftlab.data.reading.split_names import splits_in
from peftlab.errors import DataError

_SIDES = {"src", "tgt", "source", "target"}
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:[_-][A-Za-z]{2,4})?")
# Extensions that are spelt like languages.
_NO_LANGUAGES = {"csv", "tsv", "txt", "zip", "gz", "xz", "bz2", "md", "py", "ann", "log", "iob",
                 "bio", "xls", "ods", "ipc", "tab", "sh", "cfg", "ini", "yml", "pdf", "tar", "htm",
                 "bin", "pt", "npy", "arw", "zst", "out", "err"}  # fmt: skip
_DIRECTION = re.compile(r"\.[a-z]{2,3}-[a-z]{2,3}$")


def recognises(folder: DataFile) -> bool:
    """Whether the files of the folder are pairs, named by languages or by source and target."""
    known = extensions()
    if any(DataFile(path).suffix in known for path in folder.path.iterdir() if path.is_file()):
        return False
    return any("train" in splits_in(split) for split in _pairs(folder))


def open_parallel(folder: DataFile, options: ReaderConfig) -> Mapping[str, RawSplit]:
    """The splits, each with a column a side, called as the files' extensions.

    Raises `DataError` where one file of a pair has more lines, or a file of a split stands alone.
    """
    pairs = _pairs(folder)
    for split, sides in pairs.items():
        if len(sides) != 2 and splits_in(split):
            raise DataError(
                f"{folder.where}: {split} has the sides {', '.join(sides)}; parallel lines are in "
                "two files, one a side."
            )
    return {
        split: _open(split, sides, options) for split, sides in pairs.items() if len(sides) == 2
    }


def _pairs(folder: DataFile) -> dict[str, dict[str, DataFile]]:
    """The files by split and side."""
    pairs: dict[str, dict[str, DataFile]] = {}
    for path in sorted(folder.path.iterdir()):
        file = DataFile(path)
        side = file.suffix.removeprefix(".")
        named = side in _SIDES or (_LANGUAGE.fullmatch(side) and side not in _NO_LANGUAGES)
        if path.is_file() and not path.name.startswith(".") and named:
            split = _DIRECTION.sub("", file.stem)
            pairs.setdefault(split, {})[side] = file
    return pairs


def _open(split: str, sides: Mapping[str, DataFile], options: ReaderConfig) -> RawSplit:
    files = {side: data_file(file.path) for side, file in sides.items()}
    folder = next(iter(sides.values())).path.parent
    where = f"{folder}/{split}.{{{','.join(sides)}}}"
    return from_records(where, lambda: _rows(files, options), counts_lines=True)


def _rows(files: Mapping[str, DataFile], options: ReaderConfig) -> Numbered:
    streams = [lines_of(file, options) for file in files.values()]
    for number, lines in enumerate(zip_longest(*streams), start=1):
        if any(line is None for line in lines):
            ended, longer = sorted(
                files.values(), key=lambda file: lines[list(files.values()).index(file)] is not None
            )
            raise DataError(
                f"{longer.where}:{number}: {ended.where} ends before this line, after {number - 1} "
                "lines; files of parallel lines have as many."
            )
        row = {side: line[1].rstrip("\r\n") for side, line in zip(files, lines, strict=True)}
        if any(text.strip() for text in row.values()):
            yield number, row
