"""Text: its lines, numbered, so that errors can name them. Nothing is cached."""

from __future__ import annotations

from collections.abc import Iterator

from peftlab.config.reader import ReaderConfig
from peftlab.data.reading.data_file import DataFile
from peftlab.data.reading.raw_splits import Numbered, RawSplit, from_records
from peftlab.errors import DataError

FIELD_LIMIT = 10_000_000
"""The most characters of a field. More is nearly always an unclosed quote or the wrong file."""

_UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_OTHER_FORMATS = {
    b"\x1f\x8b": "gzip-compressed",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "a parquet file",
    b"ARROW1": "an Arrow file",
    b"%PDF": "a PDF",
}


def decoded_lines(file: DataFile) -> Iterator[tuple[int, str]]:
    """Lines of a UTF-8 file, line ends kept, a byte-order mark dropped."""
    with file.open() as stream:
        for number, raw in enumerate(stream, start=1):
            if number == 1:
                _refuse_other_formats(file, raw)
                raw = raw.removeprefix(_UTF8_BOM)
            if b"\0" in raw:
                raise DataError(
                    f"{file.where}:{number} contains NUL bytes: the file is binary, or text in "
                    "UTF-16. Give it as UTF-8 text (iconv -f utf-16 -t utf-8 converts)."
                )
            try:
                yield number, raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{file.where}:{number} is not UTF-8: byte 0x{raw[error.start]:02x} at column "
                    f"{error.start + 1}. If the file is Latin-1 or Windows-1252, convert it "
                    "(iconv -f windows-1252 -t utf-8); if it is binary, it is not a data file."
                ) from None


def _refuse_other_formats(file: DataFile, start: bytes) -> None:
    if start.startswith(_UTF16_BOMS):
        raise DataError(
            f"{file.where} is UTF-16; peftlab reads UTF-8 (iconv -f utf-16 -t utf-8 converts)."
        )
    for magic, what in _OTHER_FORMATS.items():
        if start.startswith(magic):
            raise DataError(
                f"{file.where} is {what}, not {file.suffix.lstrip('.')} text: {_way_out(what)}."
            )


def _way_out(what: str) -> str:
    return "name it .parquet" if "parquet" in what else "unpack or convert it first"


def open_txt(file: DataFile, _: ReaderConfig) -> RawSplit:
    """The lines of a file, in the column `text`. Raises `DataError`."""
    return from_records(
        file.where, lambda: read_txt(file), counts_lines=True, all_text=True,
        nothing="only blank lines",
    )  # fmt: skip


def read_txt(file: DataFile) -> Numbered:
    """One row per line, in the column `text`; blank lines are skipped."""
    for number, line in decoded_lines(file):
        if line.strip():
            yield number, {"text": line.rstrip("\r\n")}
