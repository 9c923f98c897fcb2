"""The table of readers: which one opens a file of rows, by its content and its extension.

A reader is a function `(file: DataFile, options: ReaderConfig) -> RawSplit`, or, for a file that
holds several splits, a mapping of their names to them. Adding a format is a file with that function
and one line in `READERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from peftlab.config.reader import ReaderConfig
from peftlab.config.registry import import_name
from peftlab.data.reading.data_file import DataFile, data_file, is_archive, members
from peftlab.data.reading.raw_splits import RawSplit
from peftlab.errors import ConfigError, DataError, did_you_mean

Opened = RawSplit | Mapping[str, RawSplit]
Open = Callable[[DataFile, ReaderConfig], Opened]


@dataclass(frozen=True, slots=True)
class Reader:
    """One way to read a file. `opens` and `recognises` are "module:function", imported when used.

    `recognises(file: DataFile) -> bool` looks into a file: it is asked of files with one of the
    `extensions`, of files whose extension no reader has, and, of a reader with `folder`, of
    folders. A file that starts with one of `starts` is this reader's, whatever its extension.
    Without `recognises`, a reader takes every file with its extensions that no other recognises.
    """

    name: str
    opens: str
    extensions: tuple[str, ...] = ()
    starts: tuple[bytes, ...] = ()
    recognises: str | None = None
    folder: bool = False

    def open(self, file: DataFile, options: ReaderConfig) -> Opened:
        """The file's rows. Raises `DataError`."""
        return cast(Open, import_name(self.opens))(file, options)

    def knows(self, file: DataFile) -> bool:
        """Whether the file's content is this reader's kind."""
        if self.recognises is None:
            return False
        return bool(cast(Callable[[DataFile], bool], import_name(self.recognises))(file))


_HERE = "peftlab.data.reading"

READERS: dict[str, Reader] = {
    reader.name: reader
    for reader in (
        Reader("csv", f"{_HERE}.separated.table:open_csv", (".csv",)),
        Reader("tsv", f"{_HERE}.separated.table:open_tsv", (".tsv", ".tab")),
        Reader("json", f"{_HERE}.json_files:open_json", (".json", ".jsonl", ".ndjson")),
        Reader(
            "jsonl",
            f"{_HERE}.json_files:open_json",
            (".txt",),
            recognises=f"{_HERE}.json_files:is_json_lines",
        ),
        Reader("txt", f"{_HERE}.text_files:open_txt", (".txt",)),
        Reader("parquet", f"{_HERE}.arrow_files:open_parquet", (".parquet",), (b"PAR1",)),
        Reader(
            "arrow",
            f"{_HERE}.arrow_files:open_arrow",
            (".arrow", ".feather", ".ipc"),
            (b"ARROW1", b"FEA1", b"\xff\xff\xff\xff"),
        ),
        Reader(
            "workbook",
            f"{_HERE}.spreadsheets:open_workbook",
            (".xlsx", ".xls", ".xlsm", ".xlsb", ".ods"),
            (b"PK\x03\x04", b"\xd0\xcf\x11\xe0"),
        ),
        Reader(
            "saved", f"{_HERE}.saved:open_saved", recognises=f"{_HERE}.saved:is_saved", folder=True
        ),
        Reader(
            "conll",
            f"{_HERE}.annotated.conll:open_conll",
            (
                ".conll",
                ".conllu",
                ".conll03",
                ".iob",
                ".iob2",
                ".bio",
                ".bioes",
                ".bilou",
                ".txt",
                ".tsv",
            ),
            recognises=f"{_HERE}.annotated.conll:recognises",
        ),
        Reader(
            "semeval-relations",
            f"{_HERE}.annotated.marked_blocks:open_blocks",
            (".txt",),
            recognises=f"{_HERE}.annotated.marked_blocks:recognises",
        ),
        Reader("docbin", f"{_HERE}.annotated.docbin:open_docbin", (".spacy",)),
        Reader(
            "parallel",
            f"{_HERE}.annotated.parallel:open_parallel",
            recognises=f"{_HERE}.annotated.parallel:recognises",
            folder=True,
        ),
        Reader(
            "brat",
            f"{_HERE}.annotated.brat:open_brat",
            recognises=f"{_HERE}.annotated.brat:recognises",
            folder=True,
        ),
    )
}
"""Every reader by the name that `data.reader.format` takes."""


def extensions() -> tuple[str, ...]:
    """Every extension that some reader takes."""
    return tuple(dict.fromkeys(end for reader in READERS.values() for end in reader.extensions))


def reader_named(name: str) -> Reader:
    """The reader that `data.reader.format` names. Raises `ConfigError`."""
    if name not in READERS:
        hint = did_you_mean(name.lstrip("."), list(READERS)) or ";"
        raise ConfigError(
            f"data.reader.format is {name!r}{hint} it takes auto, {', '.join(READERS)}."
        )
    return READERS[name]


def find_reader(file: DataFile, options: ReaderConfig) -> Reader:
    """The reader of a file, or of a folder that is one data set.

    Raises `DataError` where no reader, or where several recognise it.
    """
    if options.format != "auto":
        return reader_named(options.format)
    if file.path.is_dir():
        return _only([r for r in READERS.values() if r.folder and r.knows(file)], file, ())
    start = file.start(512)
    if not start:
        raise DataError(f"{file.where} is empty (0 bytes).")
    if start[257:262] == b"ustar":
        raise DataError(f"{file.where} is a tar archive; unpack it, or pack its files as zip.")
    for reader in READERS.values():
        if start.startswith(reader.starts) and reader.starts:
            return reader
    named = [r for r in READERS.values() if file.suffix in r.extensions]
    asked = named or [r for r in READERS.values() if not r.folder]
    others = [r for r in named if r.recognises is None]
    return _only([r for r in asked if r.knows(file)], file, others)


def is_folder_format(path: Path, options: ReaderConfig) -> bool:
    """Whether a folder is one data set that a reader opens as a whole."""
    folder = DataFile(path)
    if options.format != "auto":
        return reader_named(options.format).folder
    return any(r.folder and r.knows(folder) for r in READERS.values())


def _only(known: list[Reader], file: DataFile, others: Iterable[Reader]) -> Reader:
    if len(known) > 1:
        names = " and ".join(reader.name for reader in known)
        raise DataError(
            f"{file.where} can be read as {names}; say which with "
            f"data.reader.format={known[0].name}."
        )
    for reader in (*known, *others):
        return reader
    raise DataError(
        f"{file.where}: peftlab does not read {file.suffix or 'files without an extension'!r}; "
        f"it reads {', '.join(extensions())}. For another name of such a file, set "
        "data.reader.format."
    )


def open_path(path: Path, options: ReaderConfig | None = None) -> RawSplit:
    """The rows of one file. Raises `DataError`, also where it holds several splits."""
    if is_archive(path):
        inside = [f for f in members(path) if f.suffix in extensions()]
        if len(inside) != 1:
            names = ", ".join(file.name for file in inside[:8]) or "none"
            raise DataError(f"{path} holds several data files or none ({names}); unpack it.")
        return open_one(inside[0], options or ReaderConfig())
    return open_one(data_file(path), options or ReaderConfig())


def open_one(file: DataFile, options: ReaderConfig) -> RawSplit:
    """The rows of a file that holds no more than one split. Raises `DataError`."""
    opened = open_splits(file, options)
    if len(opened) == 1:
        return next(iter(opened.values()))
    raise DataError(
        f"{file.where} holds several splits, {', '.join(opened)}, where one table of rows is "
        "expected; name the file itself as data.source, or write each to a file of its own."
    )


def open_splits(file: DataFile, options: ReaderConfig) -> Mapping[str, RawSplit]:
    """The rows of a file by split; those of a file without splits are `train`."""
    opened = find_reader(file, options).open(file, options)
    return {"train": opened} if isinstance(opened, RawSplit) else opened
