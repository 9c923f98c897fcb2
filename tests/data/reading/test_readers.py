"""The table of readers: a format is one file and one line."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from peftlab.config.reader import ReaderConfig
from peftlab.data.reading import readers
from peftlab.data.reading.data_file import DataFile, data_file
from peftlab.data.reading.raw_splits import Numbered, RawSplit, from_records
from peftlab.data.reading.readers import READERS, Reader, open_path
from peftlab.errors import ConfigError, DataError

TABLE = "text,label\nå b,yes\nc,no\n"
ROWS = [{"text": "å b", "label": "yes"}, {"text": "c", "label": "no"}]


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue().to_pybytes())


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


def rows_of(path: Path, options: ReaderConfig | None = None) -> list[dict[str, object]]:
    opened = open_path(path, options)
    return [row for _, row in opened.rows(opened.columns)]


@pytest.mark.parametrize("named", ["rows.csv{}", "rows.csv"])
@pytest.mark.parametrize("ending", COMPRESS)
def test_compressed_files_are_read_by_their_content(
    ending: str, named: str, tmp_path: Path
) -> None:
    path = tmp_path / named.format(ending)
    path.write_bytes(COMPRESS[ending](TABLE.encode()))
    assert rows_of(path) == ROWS
    (tmp_path / f"plain.csv{ending}").write_text(TABLE)
    assert rows_of(tmp_path / f"plain.csv{ending}") == ROWS


@pytest.mark.parametrize("ending", COMPRESS)
def test_a_column_store_may_be_compressed_too(ending: str, tmp_path: Path) -> None:
    sink = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(ROWS), sink)
    path = tmp_path / f"rows.parquet{ending}"
    path.write_bytes(COMPRESS[ending](sink.getvalue()))
    assert rows_of(path) == ROWS


@pytest.mark.parametrize("ending", COMPRESS)
def test_compressed_data_that_break_off_are_said_to(ending: str, tmp_path: Path) -> None:
    body = "".join(f"text {i * 7919 % 10007},{i % 2}\n" for i in range(20_000))
    content = COMPRESS[ending](("text,label\n" + body).encode())
    path = tmp_path / f"rows.csv{ending}"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=rf"rows.csv{ending} is cut short: its \w+-compressed"):
        rows_of(path)


def test_a_reader_that_is_added_is_one_file_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("reader_of_cards")

    def open_cards(file: DataFile, _: ReaderConfig) -> RawSplit:
        def read() -> Numbered:
            cards = file.start().decode().split("\n\n")
            return ((n, dict([line.split(": ") for line in c.splitlines()])) for n, c in
                    enumerate(cards, 1))  # fmt: skip

        return from_records(file.where, read, counts_lines=False)

    module.open_cards = open_cards  # type: ignore[attr-defined]
    module.is_cards = lambda file: file.start(6) == b"text: "  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "reader_of_cards", module)
    line = Reader("cards", "reader_of_cards:open_cards", (".card",), (), "reader_of_cards:is_cards")
    monkeypatch.setitem(READERS, "cards", line)
    cards = "\n\n".join(f"text: {row['text']}\nlabel: {row['label']}" for row in ROWS)
    for name in ("rows.card", "rows.whatever", "rows"):
        (tmp_path / name).write_text(cards)
        assert rows_of(tmp_path / name) == ROWS
    (tmp_path / "rows.txt").write_text(cards)
    assert rows_of(tmp_path / "rows.txt", ReaderConfig(format="cards")) == ROWS
    assert len(rows_of(tmp_path / "rows.txt")) == 4
    assert ".card" in readers.extensions()


def test_two_readers_that_know_a_file_are_a_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("reader_of_everything")
    module.know = lambda file: True  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "reader_of_everything", module)
    for name in ("one", "other"):
        line = Reader(name, "", (), (), "reader_of_everything:know")
        monkeypatch.setitem(READERS, name, line)
    (tmp_path / "rows.strange").write_text(TABLE)
    with pytest.raises(DataError, match=r"as one and other; .*data\.reader\.format=one"):
        rows_of(tmp_path / "rows.strange")


def test_readers_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(TABLE)
    with pytest.raises(ConfigError, match=r"data\.reader\.format is 'cvs'; did you mean csv\?"):
        rows_of(tmp_path / "rows.csv", ReaderConfig(format="cvs"))
    (tmp_path / "rows.docx").write_text(TABLE)
    with pytest.raises(DataError, match=r"does not read '.docx'; it reads .csv"):
        rows_of(tmp_path / "rows.docx")


def test_objects_in_a_text_file_are_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert rows_of(tmp_path / "rows.txt") == ROWS
    (tmp_path / "rows.txt").write_text("{one}\n{two}\n")
    assert len(rows_of(tmp_path / "rows.txt")) == 2


def test_a_tar_archive_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(TABLE)
    with tarfile.open(tmp_path / "rows.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "rows.csv", "rows.csv")
    with pytest.raises(DataError, match=r"rows\.tar\.gz is a tar archive; unpack it"):
        rows_of(tmp_path / "rows.tar.gz")


def test_one_file_in_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "rows.zip", "w") as archive:
        archive.writestr("some rows.csv", TABLE)
        archive.writestr("notes.md", "words")
    assert rows_of(tmp_path / "rows.zip") == ROWS
    with zipfile.ZipFile(tmp_path / "rows.zip", "a") as archive:
        archive.writestr("more.csv", TABLE)
    with pytest.raises(DataError, match=r"several data files .*more\.csv, some rows\.csv"):
        rows_of(tmp_path / "rows.zip")


def test_a_member_of_an_archive_is_a_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "rows.zip", "w") as archive:
        archive.writestr("in/train.csv.gz", gzip.compress(TABLE.encode()))
    file = data_file(tmp_path / "rows.zip", "in/train.csv.gz")
    assert (file.name, file.stem, file.suffix) == ("train.csv", "train", ".csv")
    opened = readers.open_one(file, ReaderConfig())
    assert [row for _, row in opened.rows(opened.columns)] == ROWS
    assert opened.location(2) == f"{tmp_path}/rows.zip/in/train.csv.gz:2"
