"""Which rows train and test: files by name, folders, archives, slices, a column, a README."""

from __future__ import annotations

import json
import logging
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from peftlab.data.loading import load_splits
from peftlab.data.source import Source
from peftlab.data.splits import Splits
from peftlab.errors import ConfigError, DataError, PeftlabError

CLASSIFY: dict[str, Any] = {"formats": ("text-label",), "roles": ("text", "label")}


def table(name: str, count: int = 4) -> str:
    return "text,label\n" + "".join(f"{name} {i},{'ab'[i % 2]}\n" for i in range(count))


def load(source: Path | Source, **options: object) -> Splits:
    options = {"validation": 0} | options
    place = source if isinstance(source, Source) else str(source)
    return load_splits(place, **CLASSIFY, **options)  # type: ignore[arg-type]


def first_words(splits: Splits) -> dict[str, set[str]]:
    named = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    return {
        name: {str(text).split()[0] for text in rows["text"]}
        for name, rows in named.items()
        if rows is not None
    }


def refused(source: Path | Source, *named: str, kind: type[PeftlabError] = DataError,
            **options: object) -> None:  # fmt: skip
    with pytest.raises(kind) as caught:
        load(source, **options)
    message = str(caught.value)
    assert [part for part in named if part not in message] == [], message


@pytest.mark.parametrize(
    "names",
    [
        ("train.csv", "dev.csv", "test.csv"),
        ("training.csv", "val.csv", "testing.csv"),
        ("my_train.csv", "my_valid.csv", "my_test.csv"),
        ("train_data.tsv", "eval_data.tsv", "test_data.tsv"),
        ("dataTrain.csv", "dataDev.csv", "dataTest.csv"),
        ("olid-training-v1.0.csv", "olid-dev-v1.0.csv", "testset-levela.csv"),
        ("TRAIN.csv", "DEV.csv", "TEST.csv"),
        ("train.csv.gz.csv", "dev.1.csv", "test.1.csv"),
    ],
)
def test_usual_file_names(names: tuple[str, str, str], tmp_path: Path) -> None:
    for name, split in zip(names, ("train", "dev", "test"), strict=True):
        (tmp_path / name).write_text(table(split).replace(",", "\t" if "tsv" in name else ","))
    (tmp_path / "contest_notes.csv").write_text("not,a,split\n")
    splits = load(tmp_path, validation="auto")
    assert first_words(splits) == {"train": {"train"}, "validation": {"dev"}, "test": {"test"}}


def test_names_that_leave_it_open(tmp_path: Path) -> None:
    for name in ("train_en", "train_de"):
        (tmp_path / f"{name}.csv").write_text(table(name))
    refused(tmp_path, "train_de and train_en", "both mean 'train'", "data.splits.train")
    assert first_words(load(tmp_path, train="train_en"))["train"] == {"train_en"}
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "reviews.csv").write_text(table("only"))
    assert first_words(load(tmp_path / "sub")) == {"train": {"only"}}
    (tmp_path / "sub" / "others.csv").write_text(table("other"))
    refused(tmp_path / "sub", "no split 'train'", "others, reviews")


def test_archives(tmp_path: Path) -> None:
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for split in ("train", "test"):
            archive.writestr(f"set/{split}.csv", table(split))
        archive.writestr("__MACOSX/set/._train.csv", b"\0\1")
        archive.writestr("set/README.md", "words")
    assert first_words(load(path)) == {"train": {"train"}, "test": {"test"}}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("any name.csv", table("only"))
    assert first_words(load(path)) == {"train": {"only"}}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("apples.csv", table("a"))
        archive.writestr("pears.csv", table("b"))
    refused(path, "no split 'train'", "apples, pears")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("picture.png", b"\x89PNG")
    refused(path, "no data files", "picture.png")
    path.write_bytes(path.read_bytes()[:40])
    refused(path, "damaged or incomplete zip archive")


def test_an_encrypted_archive(tmp_path: Path) -> None:
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train.csv", table("train"))
    content = bytearray(path.read_bytes())
    content[6] |= 1  # the flag of the member's own header, and of its entry in the directory
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(content))
    refused(path, "data.zip/train.csv is encrypted", "unpack")


def test_slices(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(table("row", 10))
    splits = load(path, train="train[:80%]", test="train[80%:]")
    assert splits.test is not None
    assert (len(splits.train), list(splits.test["text"])) == (8, ["row 8", "row 9"])
    splits = load(path, train="train[:2]+train[-2:]", validation="train[2:8]")
    assert list(splits.train["text"]) == ["row 0", "row 1", "row 8", "row 9"]
    assert splits.validation is not None
    assert len(splits.validation) == 6
    refused(path, "share rows 6 to 8", "[:80%]", "[5:]", kind=ConfigError,
            train="train[:80%]", test="train[5:]")  # fmt: skip
    refused(path, "share rows 1 to 2", kind=ConfigError, train="train", test="train[:2]")
    refused(path, "data.splits.train=train[:x%]", "10 rows", kind=ConfigError, train="train[:x%]")
    refused(path, "data.splits.train=train[20:30] has no rows", train="train[20:30]")
    refused(path, "no split 'tests'", train="tests[:50%]")
    bad = path.read_text() + "row 10,\n"
    path.write_text(bad)
    refused(path, "rows.csv:12", train="train[2:]")


def test_a_column_that_names_splits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "rows.csv"
    rows = [("train", "a"), ("dev", "a"), ("train", "b"), ("test", "b"), ("test", "a")]
    path.write_text("text,label,Split\n" + "".join(f"{s} x,{lab},{s}\n" for s, lab in rows))
    with caplog.at_level(logging.INFO, "peftlab"):
        splits = load(path, validation="auto")
    assert first_words(splits) == {"train": {"train"}, "validation": {"dev"}, "test": {"test"}}
    assert "column 'Split' says which split" in caplog.text
    assert "train (2), test (2), dev (1)" in caplog.text
    assert len(load(Source(str(path), split_column=None)).train) == 5
    path.write_text(path.read_text() + "odd x,a,spare\n")
    refused(path, "'Split'", "spare (1)", "data.splits.column=Split", "data.splits.column=null")
    assert len(load(Source(str(path), split_column="Split")).train) == 2
    refused(Source(str(path), split_column="Splt"), "did you mean Split?", kind=ConfigError)
    path.write_text("text,label,split\nx,a,banana\ny,b,hair\n")
    assert len(load(path).train) == 2


def test_nested_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [
        {"meta": {"text": f"t{i}", "turns": [{"label": "ab"[i % 2]}]}, "extra": i} for i in range(4)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = {"text": "meta.text", "label": "meta.turns.0.label"}
    splits = load(Source(str(path), columns=named))
    assert splits.train[1] == {"text": "t1", "label": "b"}
    refused(Source(str(path), columns={**named, "text": "meta.txt"}), "column 'meta' has no 'txt'",
            "it has text, turns", "data.columns.text=meta.txt")  # fmt: skip
    csv = tmp_path / "rows.csv"
    cells = ['"{""a"": ""x""}",a\n', '"{""a"": ""y""}",b\n']
    csv.write_text("meta,label\n" + "".join(cells))
    assert load(Source(str(csv), columns={"text": "meta.a"})).train["text"] == ["x", "y"]


README = """---
license: mit
dataset_info:
- config_name: en
  features:
  - {name: text, dtype: string}
  - name: label
    dtype:
      class_label:
        names: {'0': bad, '1': good}
configs:
- config_name: en
  data_files:
  - {split: train, path: en/train-*}
  - {split: test, path: en/test.csv}
- config_name: de
  data_files: [{split: train, path: "de/*.csv"}]
---
# A data set
"""


def test_a_downloaded_repository(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(README)
    (tmp_path / "en").mkdir()
    (tmp_path / "de").mkdir()
    numbers = "text,label\nen 1,1\nen 2,0\n"
    for name in ("en/train-00000-of-00001.csv", "en/test.csv", "de/a.csv"):
        (tmp_path / name).write_text(numbers.replace("en", name[:2]))
    refused(tmp_path, "several subsets, en, de", "data.subset=en", kind=ConfigError)
    splits = load(Source(str(tmp_path), subset="en"))
    assert first_words(splits) == {"train": {"en"}, "test": {"en"}}
    assert splits.label_names == ("bad", "good")
    assert load(Source(str(tmp_path), subset="de")).label_names == ("0", "1")
    refused(Source(str(tmp_path), subset="fr"), "'fr'", "en, de", kind=ConfigError)
    (tmp_path / "de" / "a.csv").unlink()
    refused(Source(str(tmp_path), subset="de"), "'de/*.csv'", "none is in")
    (tmp_path / "README.md").write_text("---\na: [\n---\n")
    refused(tmp_path, "README.md", "not YAML")


def test_usual_layouts_without_a_readme(tmp_path: Path) -> None:
    rows = pa.table({"text": ["a 1", "a 2"], "label": ["x", "y"]})
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for split in ("train", "test"):
        parquet.write_table(rows, tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet")
    (tmp_path / "hub" / "README.md").write_text("# words")
    assert first_words(load(tmp_path / "hub")) == {"train": {"a"}, "test": {"a"}}
    for split in ("train", "test"):
        (tmp_path / "dirs" / split).mkdir(parents=True)
        for part in ("a", "b"):
            (tmp_path / "dirs" / split / f"{part}.csv").write_text(table(f"{split}{part}"))
    found = first_words(load(tmp_path / "dirs"))
    assert found == {"train": {"traina", "trainb"}, "test": {"testa", "testb"}}
    for subset in ("one", "two"):
        (tmp_path / "subsets" / subset).mkdir(parents=True)
        (tmp_path / "subsets" / subset / "train.csv").write_text(table(subset))
    refused(tmp_path / "subsets", "one, two", "data.subset", kind=ConfigError)
    chosen = Source(str(tmp_path / "subsets"), subset="two")
    assert first_words(load(chosen)) == {"train": {"two"}}
