"""A file of rows: where it is, what it is called, and its bytes, decompressed as they are read."""

from __future__ import annotations

import io
import shutil
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, cast

from peftlab.errors import DataError

COMPRESSIONS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
"""Extensions that are taken off before a file's own; whether it is compressed, its bytes say."""

_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_ZIP_MAGIC = b"PK\x03\x04"
# Zip archives that are documents: their own readers open them.
_DOCUMENT_PARTS = ("[Content_Types].xml", "mimetype")


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file, a member of a zip archive, or a folder that one reader reads as a whole."""

    path: Path
    member: str = ""
    compression: str = ""

    @property
    def where(self) -> str:
        """The place for messages."""
        return f"{self.path}/{self.member}" if self.member else str(self.path)

    @property
    def name(self) -> str:
        """The file's name without the extension of a compression: `train.csv` of `train.csv.gz`."""
        name = PurePosixPath(self.member).name if self.member else self.path.name
        whole = PurePosixPath(name)
        return whole.stem if whole.suffix.lower() in COMPRESSIONS else name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The extension, in lower case, without that of a compression."""
        return PurePosixPath(self.name).suffix.lower()

    def open(self) -> BinaryIO:
        """A stream of the decompressed bytes.

        Raises `DataError` where the file cannot be opened; so does reading, where its compressed
        data are broken off or damaged.
        """
        try:
            source, archive = self._stored()
        except (OSError, zipfile.BadZipFile) as error:
            raise unreadable(self, error) from None
        if not self.compression and archive is None:
            return cast(BinaryIO, source)
        return cast(BinaryIO, io.BufferedReader(_Decompressed(self, source, archive), 1 << 16))

    def open_seekable(self) -> BinaryIO:
        """As `open`, for random access: compressed bytes are unpacked into a temporary file."""
        stream = self.open()
        if not self.compression and not self.member:
            return stream
        unpacked = tempfile.TemporaryFile(prefix="peftlab-unpacked-")  # noqa: SIM115
        with stream:
            shutil.copyfileobj(stream, unpacked, 1 << 20)
        unpacked.seek(0)
        return cast(BinaryIO, unpacked)

    def start(self, size: int = 1 << 16) -> bytes:
        """The first bytes, at most `size`, decompressed."""
        with self.open() as stream:
            return stream.read(size)

    def _stored(self) -> tuple[IO[bytes], zipfile.ZipFile | None]:
        if not self.member:
            return self.path.open("rb"), None
        archive = zipfile.ZipFile(self.path)
        try:
            if archive.getinfo(self.member).flag_bits & 1:
                raise DataError(
                    f"{self.where} is encrypted; unpack the archive with its password, and name "
                    "the unpacked files."
                )
            return archive.open(self.member), archive
        except BaseException:
            archive.close()
            raise


class _Decompressed(io.RawIOBase):
    """Bytes of a compressed file or an archive's member; faults of the data are `DataError`s."""

    def __init__(self, file: DataFile, source: IO[bytes], archive: zipfile.ZipFile | None) -> None:
        self._file, self._source, self._archive = file, source, archive
        self._inner = _decompressor(source, file.compression)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._guarded(lambda: self._inner.read(len(buffer)))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if not self.closed:
            for opened in (self._inner, self._source, self._archive):
                if opened is not None:
                    opened.close()
        super().close()

    def _guarded(self, act: Any) -> Any:
        import lzma

        broken = (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError)
        try:
            return act()
        except broken as error:
            raise unreadable(self._file, error) from None


def _decompressor(source: IO[bytes], compression: str) -> Any:
    """A stream of what `source` holds; each library is imported where it is needed."""
    if compression == "gzip":
        import gzip

        return gzip.GzipFile(fileobj=source)
    if compression == "bzip2":
        import bz2

        return bz2.BZ2File(source)
    if compression == "xz":
        import lzma

        return lzma.LZMAFile(source)
    if compression == "zstd":
        import pyarrow

        return pyarrow.CompressedInputStream(pyarrow.PythonFile(source, mode="r"), "zstd")
    return source


def unreadable(file: DataFile, error: BaseException) -> DataError:
    """The error of a file whose bytes cannot be had."""
    kind = f"{file.compression}-compressed " if file.compression else ""
    if isinstance(error, EOFError) or "truncated" in str(error).lower():
        return DataError(
            f"{file.where} is cut short: its {kind}data end in the middle. Copy or download it "
            "again."
        )
    reason = getattr(error, "strerror", None) or " ".join(str(error).split()).rstrip(".")
    return DataError(f"{file.where} cannot be read: {reason or type(error).__name__}.")


def data_file(path: Path, member: str = "") -> DataFile:
    """The file at a path, or a member of the archive there; its first bytes tell a compression.

    Raises `DataError` where it cannot be opened.
    """
    plain = DataFile(path, member)
    if path.is_dir():
        return plain
    start = plain.start(8)
    compression = next((name for magic, name in _MAGIC.items() if start.startswith(magic)), "")
    return DataFile(path, member, compression)


def is_archive(path: Path) -> bool:
    """Whether a file is a zip archive that is not a document, as xlsx and ods files are."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        if file.read(4) != _ZIP_MAGIC:
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            return not set(_DOCUMENT_PARTS) & set(archive.namelist())
    except zipfile.BadZipFile:
        return path.suffix.lower() == ".zip"


def members(path: Path) -> list[DataFile]:
    """The files in a zip archive, by name, without what operating systems add.

    Raises `DataError` for an archive that cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(info.filename for info in archive.infolist() if not info.is_dir())
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} is a damaged or incomplete zip archive ({error}); copy or download it again."
        ) from None
    return [data_file(path, name) for name in names if not _is_hidden(name)]


def _is_hidden(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return parts[0] == "__MACOSX" or any(part.startswith(".") for part in parts)
