"""Each kind of bad data is one readable error naming file, row or column, and leaves nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from peftlab.data.loading import load_splits
from peftlab.data.source import Source
from peftlab.errors import ConfigError, DataError, PeftlabError

CLASSIFY: dict[str, Any] = {
    "formats": ("pair", "text-label"), "roles": ("text", "text_pair", "label")
}  # fmt: skip
CAUSAL: dict[str, Any] = {
    "formats": ("prompt-completion", "text"), "roles": ("text", "prompt", "completion")
}  # fmt: skip

GOOD = "".join(
    json.dumps({"text": f"row {i}", "label": ["no", "yes"][i % 2]}) + "\n" for i in range(10)
)


def lines(*rows: object) -> str:
    return GOOD + "".join(json.dumps(row) + "\n" for row in rows)


# name of the case: (file name, content, what the message must name)
FILES: dict[str, tuple[str, str | bytes, list[str]]] = {
    "empty file": ("train.jsonl", "", ["train.jsonl", "empty"]),
    "blank lines only": ("train.jsonl", "\n\n  \n", ["train.jsonl", "no rows"]),
    "empty list": ("train.json", "[]", ["train.json", "no rows"]),
    "header only": ("train.csv", "text,label\n", ["train.csv", "no rows", "header"]),
    "malformed line": ("train.jsonl", GOOD + '{"text": "a", \n', ["train.jsonl:11", "malformed"]),
    "two objects a line": ("train.jsonl", GOOD + '{"a": 1} {"a": 2}\n', ["train.jsonl:11"]),
    "malformed json": ("train.json", '[{"text": "a"},\n {"text" "b"}]', ["train.json:2"]),
    "json of one object": ("train.json", '{\n"data": []}', ["train.json", "data", "list"]),
    "json list of texts": ("train.json", '["a", "b"]', ["train.json, row 1", "'a'"]),
    "line is a list": ("train.jsonl", GOOD + "[1]\n", ["train.jsonl:11", "a list"]),
    "deep nesting": ("train.jsonl", "[" * 100_000 + "\n", ["train.jsonl:1"]),
    "huge number": ("train.jsonl", '{"text": "a", "label": ' + "9" * 5000 + "}\n", ["l:1"]),
    "binary": ("train.jsonl", b'{"text"\x00\x01\xff\xfe\n', ["train.jsonl:1", "binary"]),
    "no gzip inside": ("train.csv", b"\x1f\x8b\x08\x00abc", ["train.csv", "is cut short"]),
    "parquet under another name": ("train.json", b"PAR1abcd", ["train.json", "not a readable"]),
    "no parquet inside": ("train.parquet", "text,label\n", ["train.parquet", "not a readable"]),
    "utf-16 without a mark": (
        "train.csv", "text,label\nå,b\n".encode("utf-16-le"), ["UTF-16", "encoding=utf-16-le"],
    ),
    "latin-1": ("train.jsonl", GOOD.encode() + b'{"text": "caf\xe9"}\n', ["l:11", "0xe9", "1252"]),
    "missing key": ("train.jsonl", lines({"text": "a"}), ["train.jsonl:11", "'label'", "missing"]),
    "null text": ("train.jsonl", lines({"text": None, "label": "no"}), ["l:11", "'text'", "null"]),
    "null label": ("train.jsonl", lines({"text": "a", "label": None}), ["l:11", "'label'"]),
    "empty text": ("train.jsonl", lines({"text": " ", "label": "no"}), ["l:11", "'text'", "empty"]),
    "empty label": ("train.csv", "text,label\na,x\nb,\nc,y\n", ["train.csv:3", "'label'"]),
    "number for text": ("train.jsonl", lines({"text": 3, "label": "no"}), ["l:11", "3", "integer"]),
    "nested text": ("train.jsonl", lines({"text": {"a": 1}, "label": "no"}), ["l:11", "object"]),
    "list for text": ("train.jsonl", lines({"text": ["a"], "label": "no"}), ["l:11", "a list"]),
    "list for label": ("train.jsonl", lines({"text": "a", "label": ["no"]}), ["l:11", "lists"]),
    "labels of two types": (
        "train.jsonl", lines({"text": "a", "label": 1}), ["'no'", "1 (an integer)", "l:11"],
    ),
    "float label": ("train.jsonl", '{"text": "a", "label": 0.5}\n', ["l:1", "0.5", "decimal"]),
    "float label in csv": ("train.csv", "text,label\na,0.5\nb,1.5\n", ["train.csv:2", "0.5"]),
    "half a character": (
        "train.jsonl", GOOD + '{"text": "\\ud800", "label": "no"}\n', ["l:11", "surrogate"],
    ),
    "one class": ("train.csv", "text,label\na,x\nb,x\nc,x\n", ["train.csv", "the label 'x'"]),
    "one row": ("train.csv", "text,label\na,x\n", ["train.csv", "one row"]),
    "label for each row": (
        "train.csv", "text,label\n" + "".join(f"t{i},l{i}\n" for i in range(30)), ["'l0'"],
    ),
    "ragged": ("train.csv", "text,label\na,x\nb,y,z\n", ["train.csv:3", "3 fields", "has 2"]),
    "open quote": ("train.csv", 'text,label\na,x\n"b,y\nc\n', ["train.csv:3", "quote"]),
    "huge field": ("train.csv", 'text,label\n"' + "a" * 10_000_001 + '",x\n', ["n.csv:2", "10,0"]),
    "huge text": (
        "train.jsonl", lines({"text": "a" * 10_000_001, "label": "no"}), ["l:11", "10,000,000"],
    ),
    "doubled header": ("train.csv", "text,text\na,b\n", ["train.csv:1", "'text' twice"]),
    "nameless column": ("train.csv", "text,\na,b\n", ["no column for 'label'", "text, 2"]),
    "tie": ("train.csv", "text;a,b\na;x,y\n", ["comma or semicolon", "data.reader.delimiter"]),
    "no label column": ("train.csv", "text,lable\na,x\nb,y\n", ["'label'", "mean lable?"]),
    "no text column": ("train.jsonl", '{"txt": "a", "label": 1}\n', ["'text'", "mean txt?"]),
    "text alone": ("train.txt", "one\ntwo\n", ["train.txt", "'label'"]),
    "unknown extension": ("train.docx", "abc", ["no data files", "train.docx", ".parquet"]),
    "no workbook": ("train.xlsx", "abc", ["train.xlsx", "not a readable workbook"]),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_bad_file(case: str, tmp_path: Path) -> None:
    name, content, named = FILES[case]
    folder = tmp_path / "my data [v1]*"
    folder.mkdir()
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError) as caught:
        load_splits(str(folder), **CLASSIFY)
    message = str(caught.value)
    assert [part for part in named if part not in message] == [], message
    assert len(message) < 600
    assert sorted(tmp_path.rglob("*")) == before


def write(folder: Path, **files: str) -> str:
    for name, content in files.items():
        (folder / name.replace("__", "-").replace("_", ".")).write_text(content)
    return str(folder)


def refused(source: str, *named: str, kind: type[PeftlabError] = DataError, **options: object
            ) -> None:  # fmt: skip
    with pytest.raises(kind) as caught:
        load_splits(source, **{**CLASSIFY, **options})  # type: ignore[arg-type]
    message = str(caught.value)
    assert [part for part in named if part not in message] == [], message


def test_missing_paths(tmp_path: Path) -> None:
    refused(str(tmp_path / "absent"), "absent", "no such file or folder")
    refused(str(tmp_path / "absent.jsonl"), "absent.jsonl", "no such file")
    refused("data/absent.csv", "data/absent.csv", str(Path.cwd()))


def test_unknown_extension_of_one_file(tmp_path: Path) -> None:
    (tmp_path / "rows.docx").write_text("abc")
    refused(str(tmp_path / "rows.docx"), "rows.docx", "'.docx'", ".jsonl")


def test_folders(tmp_path: Path) -> None:
    refused(str(tmp_path), "it is empty")
    refused(write(tmp_path, test_jsonl=GOOD), "no split 'train'", "test")
    write(tmp_path, train_jsonl=GOOD, train_csv="text,label\na,no\nb,yes\n")
    refused(str(tmp_path), "several formats", "train.csv, train.jsonl")


def test_two_names_for_one_split(tmp_path: Path) -> None:
    source = write(tmp_path, train_jsonl=GOOD, dev_jsonl=GOOD, validation_jsonl=GOOD)
    refused(source, "dev and validation", "data.splits.validation")
    assert len(load_splits(source, **CLASSIFY, validation="dev").train) == 10


def test_incomplete_shards(tmp_path: Path) -> None:
    source = write(tmp_path, train__00000__of__00003_jsonl=GOOD, train__00002__of__00003_jsonl=GOOD)
    refused(source, "shards", "are incomplete")
    (tmp_path / "train-00002-of-00003.jsonl").unlink()
    refused(source, "shards", "are incomplete")


def test_labels_that_train_lacks(tmp_path: Path) -> None:
    other = lines({"text": "a", "label": "maybe"}, {"text": "b", "label": "never"})
    source = write(tmp_path, train_jsonl=GOOD, test_jsonl=other)
    refused(source, "test has labels", "'maybe', 'never'", "test.jsonl:11", "'no', 'yes'")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('["a", "a"]', "twice"),
        ('{"0": "a"}', "list of label names"),
        ("[1, 2]", "list of label names"),
        ("[", "not readable"),
        ('["no", "maybe"]', "'yes'"),
    ],
)
def test_bad_labels_file(content: str, named: str, tmp_path: Path) -> None:
    refused(write(tmp_path, train_jsonl=GOOD, labels_json=content), "labels.json", named)


def test_label_out_of_range(tmp_path: Path) -> None:
    rows = "text,label\na,0\nb,1\nc,2\n"
    source = write(tmp_path, train_csv=rows, labels_json='["x", "y"]')
    refused(source, "train.csv:4", "label 2", "0 to 1")


def test_splits_that_contradict(tmp_path: Path) -> None:
    source = write(tmp_path, train_jsonl=GOOD, test_jsonl=GOOD)
    refused(source, "no split 'held_out'", "train, test"[:5], validation="held_out")
    refused(source, "are both 'test'", kind=ConfigError, validation="test", test="test")
    refused(source, "validation=1.5", kind=ConfigError, validation=1.5)
    with pytest.raises(ConfigError, match="subset='en'"):
        load_splits(Source(source, subset="en"), **CLASSIFY)


def test_missing_columns(tmp_path: Path) -> None:
    source = write(tmp_path, train_jsonl=GOOD)
    refused(source, "no column 'labl'", "did you mean label?", columns={"label": "labl"})
    refused(source, "columns.txt", "text", kind=ConfigError, columns={"txt": "text"})
    refused(source, "two roles", kind=ConfigError, columns={"text": "text", "label": "text"})


def test_validation_lacks_a_column(tmp_path: Path) -> None:
    source = write(tmp_path, train_jsonl=GOOD, validation_csv="text,lab\na,no\nb,yes\n")
    refused(source, "validation.csv", "no column 'label'", "did you mean lab?")


def test_causal_columns(tmp_path: Path) -> None:
    source = write(tmp_path, train_csv="question,body_\na,b\nc,d\n")
    (tmp_path / "one.csv").write_text("prompt,rest\na,b\nc,d\n")
    refused(str(tmp_path / "one.csv"), "'completion'", **CAUSAL, columns={"prompt": "prompt"})
    (tmp_path / "two.csv").write_text("a,b\na,b\nc,d\n")
    refused(
        str(tmp_path / "two.csv"),
        "no column for 'text'",
        "prompt-completion (prompt, completion)",
        **CAUSAL,
    )
    refused(
        source, "text and prompt, which no single format has", **CAUSAL, kind=ConfigError,
        columns={"text": "question", "prompt": "body_"},
    )  # fmt: skip


def test_many_bad_rows_are_counted(tmp_path: Path) -> None:
    rows = lines(*({"text": None, "label": "no"} for _ in range(50)), {"text": "a", "label": None})
    refused(write(tmp_path, train_jsonl=rows), "l:11", "l:13 and 47 more: column 'text'", "l:61")


def test_parquet_with_nulls_and_floats(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", None, "c"], "label": pa.array([0.0, 1.5, None])})
    parquet.write_table(table, tmp_path / "train.parquet")
    refused(str(tmp_path), "train.parquet, row 2", "'text'", "decimal point", "row 3")


def test_parquet_cut_short(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"text": ["a", "b"], "label": [0, 1]}), tmp_path / "t.parquet")
    whole = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "train.parquet").write_bytes(whole[: len(whole) // 2])
    refused(str(tmp_path), "train.parquet", "not a readable parquet")


def test_hub_data_set_that_cannot_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def offline(*_: object) -> None:
        raise ConnectionError("Couldn't reach 'nobody/nothing' on the Hub (offline)")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets, "load_dataset", offline)
    refused("nobody/nothing", "'nobody/nothing'", "Couldn't reach", "HF_HUB_OFFLINE", "path")
    assert list(tmp_path.iterdir()) == []
