"""CoNLL: one token a line with its tags in columns, and a blank line after each sentence."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from peftlab.config.reader import ReaderConfig
from peftlab.data.reading.annotated.lines import lines_of
from peftlab.data.reading.data_file import DataFile
from peftlab.data.reading.raw_splits import Numbered, RawSplit, from_records
from peftlab.errors import DataError

logger = logging.getLogger("peftlab")

_OWN = (".conll", ".conllu", ".conll03", ".iob", ".iob2", ".bio", ".bioes", ".bilou")
_SPAN_TAG = re.compile(r"O|[BIESLUM]-\S+")
_EMPTY = {"_", "-", "*", ""}
_SEEN = 2000
_DOCSTART = "-DOCSTART-"
_HEADERS = {"token", "tokens", "word", "words", "form"}
_ID = re.compile(r"\d+(?:[-.]\d+)?")
_ONTONOTES_ENTITIES = 10
_FEWEST_ONTONOTES = 12

Line = tuple[int, list[str]]


@dataclass(frozen=True, slots=True)
class _Layout:
    """How lines are divided, and from 0 which column has the tokens, and which the tags."""

    tabs: bool
    width: int
    token: int
    tag: int | None
    names: tuple[str, ...] | None = None
    ontonotes: bool = False

    def fields(self, line: str) -> list[str]:
        text = line.rstrip("\r\n")
        return text.split("\t") if self.tabs else text.split()

    @property
    def columns(self) -> list[str]:
        return list(self.names or (str(at) for at in range(1, self.width + 1)))


def recognises(file: DataFile) -> bool:
    """Whether a text file has a token a line: by its extension, else by its columns."""
    if file.suffix in _OWN:
        return True
    try:
        lines = [line for _, line in islice(lines_of(file, ReaderConfig()), _SEEN)]
    except DataError:
        return False
    if any(line.startswith((_DOCSTART, "#begin document")) for line in lines):
        return True
    body = [line for line in lines if not _is_comment(line)]
    while body and not body[-1].strip():
        body.pop()
    if not any(not line.strip() for line in body):
        return False
    given = [line for line in body if line.strip()]
    tabs = all("\t" in line for line in given)
    rows = [line.rstrip("\r\n").split("\t") if tabs else line.split() for line in given]
    if len({len(row) for row in rows}) != 1 or len(rows[0]) < 2:
        return False
    if not tabs and any(line.startswith((" ", "\t")) for line in given):
        return False
    columns = list(zip(*rows[_is_header(rows[0]) :], strict=True))
    return any(
        "O" in column and any(tag != "O" for tag in column)
        and all(_SPAN_TAG.fullmatch(tag) for tag in column)
        for column in columns[1:]
    )  # fmt: skip


def open_conll(file: DataFile, options: ReaderConfig) -> RawSplit:
    """A row a sentence: lists `tokens` and `tags`, and each column under its number from 1.

    Tags are those of the last column that is filled; none are chosen where the columns are those of
    CoNLL-U, of which several may be meant. Raises `DataError` naming the line.
    """
    layout = _layout(file, options)
    if layout.tag is not None and layout.width > 2:
        names = layout.columns
        logger.info(
            "%s: tokens are column %s and tags column %s of %d; another is read with "
            "data.columns.tags=NUMBER", file.where, names[layout.token], names[layout.tag],
            layout.width,
        )  # fmt: skip
    return from_records(
        file.where, lambda: _rows(file, options, layout), counts_lines=True,
        nothing="no line with a token and its tag",
    )  # fmt: skip


def _rows(file: DataFile, options: ReaderConfig, layout: _Layout) -> Numbered:
    for start, sentence in _sentences(file, options, layout):
        columns = list(zip(*sentence, strict=False))
        row = {"tokens": list(columns[layout.token])}
        if layout.tag is not None:
            tags = list(columns[layout.tag])
            row["tags"] = (
                _from_brackets(tags, f"{file.where}:{start}") if layout.ontonotes else tags
            )
        if not layout.ontonotes:
            row |= {
                name: list(column) for name, column in zip(layout.columns, columns, strict=True)
            }
        yield start, row


def _sentences(
    file: DataFile, options: ReaderConfig, layout: _Layout
) -> Iterator[tuple[int, list[list[str]]]]:
    start, sentence = 0, list[list[str]]()
    header = layout.names
    for number, line in lines_of(file, options):
        if not line.strip() or line.startswith(_DOCSTART):
            if sentence:
                yield start, sentence
            sentence = []
            continue
        fields = layout.fields(line)
        if _is_comment(line) and not _is_hash_token(fields, layout):
            continue
        if header is not None:
            header = None
            continue
        if len(fields) != layout.width and not (
            layout.ontonotes and len(fields) >= _FEWEST_ONTONOTES
        ):
            raise DataError(
                f"{file.where}:{number} has {len(fields)} columns ({line.strip()!r:.60}), and the "
                f"first line of the file {layout.width}; each line is a token and its tags."
            )
        if layout.width == 10 and _ID.fullmatch(fields[0]) and not fields[0].isdecimal():
            continue  # CoNLL-U's contracted words and empty nodes have no tag of their own.
        if not fields[layout.token].strip():
            raise DataError(f"{file.where}:{number} has a tag and no token.")
        sentence.append(fields)
        start = number if len(sentence) == 1 else start
    if sentence:
        yield start, sentence


def _layout(file: DataFile, options: ReaderConfig) -> _Layout:
    lines = [
        (number, line)
        for number, line in islice(lines_of(file, options), _SEEN)
        if line.strip() and not line.startswith(_DOCSTART)
    ]
    ontonotes = any(line.startswith("#begin document") for _, line in lines)
    given = [(number, line) for number, line in lines if not _is_comment(line)]
    if not given:
        raise DataError(f"{file.where} has no line with a token and its tag.")
    tabs = "\t" in given[0][1]
    width = len(_Layout(tabs, 0, 0, None).fields(given[0][1]))
    if width < 2:
        raise DataError(
            f"{file.where}:{given[0][0]} has one column ({given[0][1].strip()!r:.60}); a line is a "
            "token and its tags, separated by tabs or spaces."
        )
    if ontonotes and width >= _FEWEST_ONTONOTES:
        return _Layout(tabs, width, 3, _ONTONOTES_ENTITIES, ontonotes=True)
    layout = _Layout(tabs, width, 0, None)
    rows = [fields for _, line in given if len(fields := layout.fields(line)) == width]
    header = rows[0] if _is_header(rows[0]) else None
    columns = list(zip(*rows[header is not None :], strict=True))
    if not columns:
        raise DataError(f"{file.where} has only a header.")
    token = 1 if width > 2 and all(_ID.fullmatch(cell) for cell in columns[0]) else 0
    filled = [at for at in range(width) if at > token and not set(columns[at]) <= _EMPTY]
    tag = filled[-1] if filled else None
    if token == 1 and width == 10:
        tag = None
    return _Layout(tabs, width, token, tag, tuple(header) if header else None)


def _is_header(fields: Sequence[str]) -> bool:
    return bool(_HEADERS & {field.strip().lower() for field in fields}) and not any(
        field == "O" or _SPAN_TAG.fullmatch(field) for field in fields[1:]
    )


def _is_comment(line: str) -> bool:
    return line.startswith("#") and not re.match(r"#\t|#\s+\S+$", line)


def _is_hash_token(fields: Sequence[str], layout: _Layout) -> bool:
    """Whether a line that begins as a comment is a token such as `#1`, by its columns and tag."""
    if len(fields) != layout.width or layout.ontonotes:
        return False
    return layout.tabs or bool(layout.tag and _SPAN_TAG.fullmatch(fields[layout.tag]))


def _from_brackets(cells: Sequence[str], where: str) -> list[str]:
    """OntoNotes' entities, `(PERSON*`, `*`, `*)`, as B- and I- tags. Raises `DataError`."""
    tags: list[str] = []
    inside = ""
    for cell in cells:
        opened = re.match(r"\(([^()*]+)", cell)
        if opened and inside:
            raise DataError(f"{where}: an entity begins at {cell!r} inside another ({inside}).")
        if opened:
            inside = opened[1]
        tags.append(f"{'B' if opened else 'I'}-{inside}" if inside else "O")
        if cell.endswith(")"):
            inside = ""
    return tags
