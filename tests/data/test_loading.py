from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from peftlab.data.labels.names import label_histogram
from peftlab.data.loading import load_splits
from peftlab.data.source import Source
from peftlab.data.splits import Splits

CLASSIFY: dict[str, Any] = {
    "formats": ("pair", "text-label"), "roles": ("text", "text_pair", "label")
}  # fmt: skip
CAUSAL: dict[str, Any] = {
    "formats": ("prompt-completion", "text"), "roles": ("text", "prompt", "completion")
}  # fmt: skip
ROWS = [{"text": f'row {i}, "quoted"\tå', "label": ["no", "yes"][i % 3 == 0]} for i in range(12)]


def as_csv(separator: str) -> str:
    def quoted(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    body = [separator.join((quoted(row["text"]), row["label"])) for row in ROWS]
    return "\n".join([separator.join(("text", "label")), *body]) + "\n"


FORMATS = {
    "train.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    "train.json": json.dumps(ROWS, indent=1),
    "TRAIN.JSON": "\n\n" + "\n".join(json.dumps(row) for row in ROWS),
    "train.csv": as_csv(","),
    "train.tsv": as_csv("\t"),
}


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(name: str, mark: str, tmp_path: Path) -> None:
    folder = tmp_path / "a folder [1]?*"
    folder.mkdir()
    path = folder / name
    path.write_text(mark + FORMATS[name], newline="\r\n" if "csv" in name else "\n")
    splits = load_splits(str(path), **CLASSIFY, validation=0)
    assert splits.train.to_list() == ROWS
    assert splits.label_names == ("no", "yes")
    assert splits.validation is None
    assert splits.test is None


def test_parquet_with_class_labels(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    rows = {"text": ["a", "b", "c"], "label": [1, 0, 1]}
    datasets.Dataset.from_dict(rows, features).to_parquet(str(tmp_path / "train.parquet"))
    unlabelled = {"text": ["a", "b"], "label": [-1, -1]}
    datasets.Dataset.from_dict(unlabelled, features).to_parquet(str(tmp_path / "test.parquet"))
    splits = load_splits(str(tmp_path), **CLASSIFY, validation=0)
    assert splits.train["label"] == ["pos", "neg", "pos"]
    assert splits.label_names == ("neg", "pos")
    assert splits.test is None


def test_shards_in_order(tmp_path: Path) -> None:
    for index in (1, 0):
        table = pa.table({"text": [f"{index}a", f"{index}b"], "label": [0, 1]})
        parquet.write_table(table, tmp_path / f"train-0000{index}-of-00002.parquet")
    splits = load_splits(str(tmp_path), **CLASSIFY, validation=0)
    assert splits.train["text"] == ["0a", "0b", "1a", "1b"]


def test_text_by_line(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("one \n\n  two\nthree")
    splits = load_splits(str(tmp_path / "rows.txt"), **CAUSAL, validation=0)
    assert splits.train["text"] == ["one ", "  two", "three"]


def test_tsv_with_bare_quotes(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text('text\tlabel\n"a fine film\t1\n"odd" she said\t0\nb\t1\n')
    splits = load_splits(str(tmp_path), **CLASSIFY, validation=0)
    assert splits.train["text"] == ['"a fine film', '"odd" she said', "b"]


def test_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    for first in ("a", "b"):
        stamp = (1_700_000_000, 1_700_000_000)
        path.write_text(f"text,label\n{first},0\nz,1\n")
        os.utime(path, stamp)
        splits = load_splits(str(path), **CLASSIFY, validation=0)
        assert splits.train["text"] == [first, "z"]
    assert [p.name for p in tmp_path.iterdir()] == ["train.csv"]


@pytest.mark.parametrize(
    ("labels", "names", "first"),
    [
        (["10", "9", "-1", "10"], ("-1", "9", "10"), "10"),
        (["b", "C", "a", " b "], ("C", "a", "b"), "b"),
        (["label_10", "label_2", "label_2"], ("label_2", "label_10"), "label_10"),
        (["01", "1", "1", "1"], ("01", "1"), "01"),
    ],
)
def test_label_order(labels: list[str], names: tuple[str, ...], first: str, tmp_path: Path) -> None:
    body = "".join(f"t{i},{label}\n" for i, label in enumerate(labels))
    (tmp_path / "train.csv").write_text("text,label\n" + body)
    splits = load_splits(str(tmp_path), **CLASSIFY, validation=0)
    assert splits.label_names == names
    assert splits.train["label"][0] == first


def test_bool_and_named_integer_labels(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"text": "a", "label": true}\n{"text": "b", "label": false}\n')
    splits = load_splits(str(path), **CLASSIFY, validation=0)
    assert (splits.label_names, splits.train["label"]) == (("false", "true"), ["true", "false"])
    path.write_text('{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n')
    assert load_splits(str(path), **CLASSIFY, validation=0).label_names == ("0", "1")
    (tmp_path / "labels.json").write_text('["bad", "good", "rare"]')
    splits = load_splits(str(path), **CLASSIFY, validation=0)
    assert (splits.label_names, splits.train["label"]) == (("bad", "good", "rare"), ["good", "bad"])


def test_columns_found_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "train.csv").write_text("id,Premise,Hypothesis,CLASS\n1,a,b,x\n2,c,d,y\n")
    with caplog.at_level(logging.INFO, "peftlab"):
        splits = load_splits(str(tmp_path), **CLASSIFY, validation=0)
    assert splits.columns == {"text": "Premise", "text_pair": "Hypothesis", "label": "CLASS"}
    assert "text_pair = 'Hypothesis'" in caplog.text
    assert splits.train.to_list()[0] == {"text": "a", "text_pair": "b", "label": "x"}
    only = load_splits(str(tmp_path), **CLASSIFY, columns={"text": "Premise"}, validation=0)
    assert "text_pair" not in only.columns


def test_prompt_that_leaves_a_column_unread(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "train.csv").write_text("instruction,input,output,text\na,b,c,d\ne,f,g,h\n")
    splits = load_splits(str(tmp_path), **CAUSAL, validation=0)
    assert splits.columns == {"prompt": "instruction", "completion": "output"}
    assert "'input' is not read" in caplog.text
    named = load_splits(str(tmp_path), **CAUSAL, columns={"text": "text"}, validation=0)
    assert named.columns == {"text": "text"}


def hundred(tmp_path: Path, shares: dict[str, int]) -> str:
    rows = [f"{label}{i},{label}\n" for label, count in shares.items() for i in range(count)]
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(rows))
    return str(tmp_path)


def test_validation_is_stratified_and_seeded(tmp_path: Path) -> None:
    source = hundred(tmp_path, {"a": 70, "b": 28, "c": 2})
    splits = load_splits(source, **CLASSIFY, seed=3)
    assert splits.validation is not None
    assert Counter(splits.validation["label"]) == {"a": 7, "b": 3}
    assert set(splits.validation["text"]).isdisjoint(splits.train["text"])
    assert len(splits.train) + len(splits.validation) == 100
    again, other = (load_splits(source, **CLASSIFY, seed=seed) for seed in (3, 4))
    assert again.validation is not None
    assert other.validation is not None
    assert again.validation["text"] == splits.validation["text"] != other.validation["text"]
    assert splits.names["validation"] == f"0.1 of {Path(source) / 'train.csv'}"


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
def test_fraction_leaves_a_row_each(fraction: float, tmp_path: Path) -> None:
    source = hundred(tmp_path, {"a": 2, "b": 2, "c": 1})
    splits = load_splits(source, **CAUSAL, validation=fraction)
    assert splits.validation is not None
    assert min(len(splits.train), len(splits.validation)) >= 1
    assert len(splits.train) + len(splits.validation) == 5


def test_samples_are_drawn_by_seed(tmp_path: Path) -> None:
    source = hundred(tmp_path, {"a": 50, "b": 50})
    drawn = [
        load_splits(source, **CLASSIFY, max_train_samples=20, max_eval_samples=3, seed=seed)
        for seed in (0, 0, 1)
    ]
    assert [len(splits.train) for splits in drawn] == [20, 20, 20]
    assert [len(splits.get("validation")) for splits in drawn] == [3, 3, 3]
    assert drawn[0].train["text"] == drawn[1].train["text"] != drawn[2].train["text"]


def test_labels_stay_when_a_sample_misses_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = hundred(tmp_path, {"a": 96, "b": 2, "c": 2})
    splits = load_splits(source, **CLASSIFY, max_train_samples=60)
    assert splits.label_names == ("a", "b", "c")


def test_named_validation_and_no_test(tmp_path: Path) -> None:
    for name in ("train", "dev", "test", "extra"):
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{name}1,x\n{name}2,y\n")
    auto = load_splits(str(tmp_path), **CLASSIFY)
    assert auto.get("validation")["text"] == ["dev1", "dev2"]
    assert auto.get("test")["text"] == ["test1", "test2"]
    named = load_splits(str(tmp_path), **CLASSIFY, validation="extra", test=None)
    assert named.get("validation")["text"] == ["extra1", "extra2"]
    assert named.test is None


def test_hub_data_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    loads = []

    def load_dataset(name: str, subset: str | None) -> datasets.DatasetDict:
        loads.append((name, subset, datasets.are_progress_bars_disabled()))
        label = datasets.ClassLabel(names=["bad", "good"])
        features = datasets.Features({"sentence": datasets.Value("string"), "label": label})
        rows = {"sentence": ["a", "b", "c", "d"], "label": [0, 1, 1, 0]}
        part = datasets.Dataset.from_dict(rows, features)
        return datasets.DatasetDict({"train": part, "validation": part})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    splits = load_splits(Source("somebody/reviews", subset="en"), **CLASSIFY)
    assert loads == [("somebody/reviews", "en", True)]
    assert not datasets.are_progress_bars_disabled()
    assert splits.train.to_list()[1] == {"text": "b", "label": "good"}
    assert splits.names["train"] == "somebody/reviews [train]"


def test_loading_needs_neither_torch_nor_transformers(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,x\nb,y\nc,x\nd,y\n")
    program = (
        "import sys\n"
        "from peftlab.data.loading import load_splits\n"
        f"load_splits({str(tmp_path)!r}, **{CLASSIFY!r})\n"
        "print([m for m in ('torch', 'transformers', 'sklearn') if m in sys.modules])\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1",
                   "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""
    assert [p.name for p in tmp_path.iterdir()] == ["train.csv"]


def test_label_histogram_keeps_the_order_and_the_zeros(tmp_path: Path) -> None:
    splits = load_splits(hundred(tmp_path, {"a": 30, "b": 10}), **CLASSIFY)
    assert label_histogram(splits.train, ("b", "none", "a")) == {"b": 9, "none": 0, "a": 27}


@pytest.mark.parametrize(
    ("name", "reads", "rows", "columns"),
    [
        ("sst2", CLASSIFY, (6909, 872, 1821), {"text": "text", "label": "label"}),
        ("ag_news", CLASSIFY, (3600, 500, 1000), {"text": "text", "label": "label"}),
        ("e2e_nlg", CAUSAL, (4521, 130, 270), {"prompt": "input", "completion": "output"}),
        ("tinystories_1k", CAUSAL, (717, 100, 100), {"text": "text"}),
    ],
)
def test_real_data(
    name: str, reads: dict[str, Any], rows: tuple[int, ...], columns: dict[str, str],
    shared_data: Path,
) -> None:  # fmt: skip
    splits: Splits = load_splits(str(shared_data / name), **reads)
    assert tuple(len(splits.get(split)) for split in ("train", "validation", "test")) == rows
    assert splits.columns == columns
    if name == "ag_news":
        assert splits.label_names == ("World", "Sports", "Business", "Sci/Tech")
