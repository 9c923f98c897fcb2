"""Text: its encoding by byte-order mark, else UTF-8 without exception, and its numbered lines."""

from __future__ import annotations

import io
from collections.abc import Iterator

from peftlab.config.reader import ReaderConfig
from peftlab.data.reading.data_file import DataFile
from peftlab.data.reading.encoding_question import undecodable
from peftlab.errors import DataError

# UTF-32's marks first: that of UTF-16 begins one of them.
_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_OTHER_FORMATS = {b"%PDF": "a PDF", b"\x89PNG": "a picture", b"\xd0\xcf\x11\xe0": "a document"}


def encoding_of(file: DataFile, options: ReaderConfig) -> str:
    """The codec of a file's text. Raises `DataError` where a key contradicts its mark."""
    start = file.start(4)
    marked = next((name for mark, name in _MARKS.items() if start.startswith(mark)), None)
    if options.encoding == "auto":
        return marked or "utf-8"
    family = options.encoding.lower().replace("_", "-")
    if marked is not None:
        if not family.startswith(marked.removesuffix("-sig")) and family != marked.replace("-", ""):
            raise DataError(
                f"{file.where} begins with the byte-order mark of {marked.removesuffix('-sig')}, "
                f"and data.reader.encoding is {options.encoding}; leave the key out."
            )
        return marked
    return options.encoding


def decoded_lines(
    file: DataFile, options: ReaderConfig, *, every_end: bool = False
) -> Iterator[tuple[int, str]]:
    """The lines of a text file, numbered from 1, their ends kept.

    A line ends with "\\n"; with `every_end`, or where the file has no "\\n", with "\\r" too.
    Raises `DataError` for other encodings and for NUL characters.
    """
    start = file.start()
    _refuse_other_formats(file, start)
    encoding = encoding_of(file, options)
    if not every_end:
        every_end = "\n" not in start.decode(encoding, "ignore")
    with file.open() as stream:
        text = io.TextIOWrapper(stream, encoding, newline="" if every_end else "\n")
        try:
            for number, line in enumerate(text, start=1):
                if "\0" in line:
                    raise _has_nul(file, number, start)
                yield number, line
        except UnicodeError as error:
            if options.encoding == "auto" and b"\0" in start and encoding == "utf-8":
                raise _has_nul(file, 1, start) from None
            raise undecodable(file, encoding, error) from None


def _refuse_other_formats(file: DataFile, start: bytes) -> None:
    for magic, what in _OTHER_FORMATS.items():
        if start.startswith(magic):
            raise DataError(f"{file.where} is {what}, not text: convert it first.")


def _has_nul(file: DataFile, number: int, start: bytes) -> DataError:
    even, odd = start[0::2].count(0), start[1::2].count(0)
    likely = "utf-16-le" if odd > 4 * even else "utf-16-be" if even > 4 * odd else None
    return DataError(
        f"{file.where}:{number} contains NUL bytes: the file is binary, or text in UTF-16 without "
        "a byte-order mark"
        + (f"; data.reader.encoding={likely} reads it as such." if likely else ".")
    )
