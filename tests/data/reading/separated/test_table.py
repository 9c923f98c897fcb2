"""Separated values: what a writer wrote is read, or a question is asked; never other rows."""

from __future__ import annotations

import csv
import io
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from peftlab.config.reader import ReaderConfig
from peftlab.data.reading.readers import open_path
from peftlab.errors import DataError

Rows = list[dict[str, object]]


def read(path: Path, **options: object) -> Rows:
    opened = open_path(path, ReaderConfig(**options))  # type: ignore[arg-type]
    return [row for _, row in opened.rows(opened.columns)]


def read_unless_asked(path: Path) -> Rows | None:
    """The rows, or None where a question names the file."""
    try:
        return read(path)
    except DataError as asked:
        if str(path) not in str(asked):
            raise
        return None


def texts(path: Path, content: str | bytes, **options: object) -> list[object]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [list(row.values()) for row in read(path, **options)]


def question(path: Path, content: str | bytes, *named: str, **options: object) -> None:
    with pytest.raises(DataError) as caught:
        texts(path, content, **options)
    message = str(caught.value)
    assert [part for part in named if part not in message] == [], message


TEXT = st.text(st.sampled_from("ab \"'.,;|\t\n\rå0"), max_size=12)
DIALECTS = st.fixed_dictionaries(
    {
        "delimiter": st.sampled_from(",;\t|"),
        "quoting": st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
        "lineterminator": st.sampled_from(["\n", "\r\n", "\r"]),
    }
)
TABLES = st.integers(1, 3).flatmap(
    lambda width: st.lists(st.lists(TEXT, min_size=width, max_size=width), min_size=1, max_size=9)
)
ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])


@given(table=TABLES, dialect=DIALECTS, encoding=ENCODINGS, suffix=st.sampled_from([".csv", ".tsv"]))
def test_what_is_written_is_read_or_asked_about(
    table: list[list[str]], dialect: dict[str, Any], encoding: str, suffix: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    names = ["text", "label", "more"][: len(table[0])]
    # Before Python 3.13 the writer leaves the other line end unquoted: rows that are not distinct.
    other = "\n\r".replace(dialect["lineterminator"], "") if dialect["quoting"] == 0 else ""
    assume(not any(set(text) & set(other) for row in table for text in row) or len(other) == 2)
    stream = io.StringIO(newline="")
    csv.writer(stream, **dialect).writerows([names, *table])
    path = tmp_path_factory.getbasetemp() / f"written{suffix}"
    path.write_bytes(stream.getvalue().encode(encoding))
    rows = read_unless_asked(path)
    if rows is None:
        return
    assert rows == [dict(zip(names, row, strict=True)) for row in table]


BARE = st.text(st.sampled_from("ab \"'.å0"), max_size=8)


@given(
    table=st.lists(st.tuples(BARE, st.sampled_from(["yes", "no"])), min_size=1, max_size=9),
    delimiter=st.sampled_from(",;\t|"),
)
def test_quotes_that_are_text_stay_or_are_asked_about(
    table: list[tuple[str, str]], delimiter: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lines = [f"{text}{delimiter}{label}" for text, label in [("text", "label"), *table]]
    path = tmp_path_factory.getbasetemp() / "bare.csv"
    path.write_text("\n".join(lines) + "\n")
    rows = read_unless_asked(path)
    if rows is None:
        return
    if rows != [{"text": text, "label": label} for text, label in table]:
        # A writer that quotes all texts, or those that need it, would write the same file.
        quoted = [text for text, _ in table if text.startswith('"')]
        bare = {text for text, _ in table if not text.startswith('"')}
        assert all(text.strip(" .0") == "" for text in bare) or all(
            '""' in text[1:-1] for text in quoted
        )
        unquoted = [text[1:-1].replace('""', '"') if text in quoted else text for text, _ in table]
        assert [row["text"] for row in rows] == unquoted


def test_the_separator_is_the_one_that_fits_every_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    for mark in ",;|\t":
        assert texts(path, f"text{mark}label\na. b{mark}x\n") == [["a. b", "x"]]
    prices = "text;price\nwith, commas, often;1,5\nnone;2,0\n"
    assert texts(path, prices) == [["with, commas, often", "1,5"], ["none", "2,0"]]
    assert texts(tmp_path / "rows.tsv", "text,label\na,b\n") == [["a", "b"]]
    assert texts(path, "text\na. b; c\nd\n") == [["a. b; c"], ["d"]]
    question(path, "a;b,c\n1;2,3\n", "comma or semicolon", "data.reader.delimiter")
    assert texts(path, "a;b,c\n1;2,3\n", delimiter=";") == [["1", "2,3"]]
    question(path, "text\na;x\nb;y\n", "semicolon cuts every row into 2")
    question(path, "text,label\na,b\nc, d,e\n", "rows.csv:3 has 3 fields", "has 2", "delimiter")


def test_a_quote_that_begins_a_text(tmp_path: Path) -> None:
    rows = "".join(f"plain {i},{'yes' if i % 2 else 'no'}\n" for i in range(10))
    opens = '"It began with a quarrel,no\nnothing in between,no\nand so it ended",yes\n'
    for name, mark in (("rows.csv", ","), ("rows.tsv", "\t")):
        content = ("text,label\n" + rows + opens).replace(",", mark)
        read_rows = texts(tmp_path / name, content)
        assert len(read_rows) == 13
        assert read_rows[-1] == ['and so it ended"', "yes"]
    path = tmp_path / "rows.csv"
    few = "text,label\n" + opens
    question(path, few, "rows.csv:2", "2 line(s) later", "data.reader.quotechar=null")
    assert len(texts(path, few, quotechar=None)) == 3
    assert len(texts(path, few, quotechar='"')) == 1
    mixed = 'text,label\n"a film",yes\nanother,no\n'
    question(path, mixed, "rows.csv:2", "column 1 in quotes", "quotechar")
    assert texts(path, mixed, quotechar='"')[0] == ["a film", "yes"]
    assert texts(path, "text,label\n'a, b',yes\n", quotechar="'") == [["a, b", "yes"]]
    multiline = "".join(f'"one, {i}\nother",{i % 2}\n' for i in range(9))
    clear = "text,label\n" + "".join(f"plain {i},{i % 2}\n" for i in range(9)) + multiline
    assert texts(path, clear)[-1] == ["one, 8\nother", "0"]
    half = 'text,label\n"he said "hi" to me",yes\n"b",no\n'
    question(path, half, "rows.csv:2", "quote")


def test_the_case_of_the_shared_data(shared_data: Path) -> None:
    case = shared_data.parent / "cases" / "files" / "quote_opens_a_text.tsv"
    if not case.is_file():
        pytest.skip(f"no {case}")
    rows = read(case)
    assert len(rows) == 16
    assert rows[0] == {"text": '"It began with a quarrel', "label": "negative"}


def test_indices_and_empty_columns_are_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rows.csv"
    with caplog.at_level(logging.INFO, "peftlab"):
        assert texts(path, ",text,label,\n0,a,x,\n1,b,y,\n") == [["a", "x"], ["b", "y"]]
    assert "left out column 4, which is empty" in caplog.text.replace("column 1, which numbers the "
                                                                       "rows; ", "")  # fmt: skip
    assert "column 1, which numbers the rows" in caplog.text
    for name in ("Unnamed: 0", "index"):
        assert texts(path, f"{name},text\n0,a\n1,b\n") == [["a"], ["b"]]
        assert texts(path, f"{name},text\n3,a\n1,b\n") == [["3", "a"], ["1", "b"]]
    assert read_columns(path, ",text\nx,a\ny,b\n") == ["1", "text"]
    assert read_columns(path, "text,\na,b\n") == ["text", "2"]


def read_columns(path: Path, content: str) -> list[str]:
    path.write_text(content)
    return list(open_path(path).columns)


def test_headers(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    assert texts(path, "3,Wall St.\n4,Films\n", header=False) == [["3", "Wall St."], ["4", "Films"]]
    path.write_text("3,Wall St.\n")
    assert open_path(path, ReaderConfig(header=False)).columns == ("1", "2")
    titled = "A title\n\ntext,label\na,b\n"
    assert texts(path, titled, header=3) == [["a", "b"]]
    assert open_path(path, ReaderConfig(header=3)).location(4) == f"{path}:4"
    question(path, "text,label\n", "only a header")
    question(path, "text,text\na,b\n", "rows.csv:1", "'text' twice")


def test_a_separator_that_excel_writes_ahead(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    assert texts(path, "sep=;\r\ntext;label\r\na, b;c\r\n") == [["a, b", "c"]]
    assert open_path(path).location(3) == f"{path}:3"


def test_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    for end in ("\n", "\r\n", "\r"):
        assert texts(path, f"text,label{end}a,x{end}b,y") == [["a", "x"], ["b", "y"]]
    assert texts(path, 'text,label\n"a\rb",x\n') == [["a\rb", "x"]]
    question(path, "text\na\rb\nc\n", "carriage return alone")
    question(path, b"text,label\na\0b,x\n", "rows.csv:2", "NUL")


def test_encodings(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    content = "text,label\nblå,ja\n"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        assert texts(path, content.encode(encoding)) == [["blå", "ja"]]
    for encoding in ("cp1252", "utf-16-be", "utf-8"):
        assert texts(path, content.encode(encoding), encoding=encoding) == [["blå", "ja"]]
    question(path, content.encode("utf-16-le"), "NUL", "data.reader.encoding=utf-16-le")
    question(path, content.encode("utf-16"), "mark of utf-16", encoding="cp1252")
    question(path, content.encode("cp1252"), "rows.csv:2 is not ascii", encoding="ascii")


SAMPLES = {
    "cp1252": [
        "Le café était fermé à l\u2019heure",
        "naïve façade",
        "Übung für Ärzte",
        "50 € \u2013 gut",
    ],
    "cp1251": ["Очень хороший фильм", "Мне не понравилось", "скучно и долго"],
    "shift_jis": ["この映画は素晴らしい", "つまらなかったです", "また見たい"],
    "gb18030": ["这部电影非常好看", "我不喜欢这个结局", "演员的表演很出色"],
    "euc_kr": ["이 영화는 정말 좋았다", "재미없었어요", "다시 보고 싶다"],
    "cp1253": ["\u0397 ταινία ήταν πολύ καλή", "δεν μου άρεσε"],
    "cp1250": ["Příliš žluťoučký kůň úpěl ďábelské ódy", "źle się bawiłem"],
}


@pytest.mark.parametrize("encoding", SAMPLES)
def test_other_encodings_are_a_question_that_shows_them(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    lines = SAMPLES[encoding]
    content = "text,label\n" + "".join(f"{text},x\n" for text in lines)
    question(
        path, content.encode(encoding), "rows.csv:2 is not UTF-8", f"under {encoding}:",
        lines[0], lines[1], "data.reader.encoding=",
    )  # fmt: skip
    assert texts(path, content.encode(encoding), encoding=encoding)[0] == [lines[0], "x"]
