from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftlab.config.tasks.token_classification import TokenClassificationOptions
from peftlab.data.labels.tags import standard_tags
from peftlab.data.loading import load_splits
from peftlab.data.splits import Splits
from peftlab.errors import DataError
from peftlab.tasks.tagging.tag_spans import has_spans, span_types, spans_of

OPTIONS = TokenClassificationOptions(name="token-classification")
WORDS = ["Ada", "Lovelace", "was", "in", "London"]
TRUTH = ["B-PER", "I-PER", "O", "O", "B-LOC"]
SPANS = [("PER", 0, 1), ("LOC", 4, 4)]


def load(folder: Path, *tags: list[Any], **options: Any) -> Splits:
    rows = [{"tokens": WORDS, "ner_tags": row} for row in (*tags, *tags)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_splits(
        str(folder), formats=OPTIONS.formats, roles=OPTIONS.roles, label_kind=OPTIONS.label_kind,
        validation=0, **options,
    )  # fmt: skip


SPELLINGS = {
    "standard": TRUTH,
    "underscore": [tag.replace("-", "_") for tag in TRUTH],
    "behind": ["PER-B", "PER-I", "O", "O", "LOC-B"],
    "behind, underscore": ["PER_B", "PER_I", "O", "O", "LOC_B"],
    "lower": ["b-PER", "i-PER", "o", "o", "b-LOC"],
    "colon": ["B:PER", "I:PER", "O", "O", "B:LOC"],
    "BIOES": ["B-PER", "E-PER", "O", "O", "S-LOC"],
    "BILOU": ["B-PER", "L-PER", "O", "O", "U-LOC"],
    "BMES": ["B-PER", "E-PER", "O", "O", "S-LOC"],
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings_of_spans(spelling: str, tmp_path: Path) -> None:
    splits = load(tmp_path, SPELLINGS[spelling])
    names, row = splits.label_names, splits.train[0]["tags"]
    assert names is not None
    assert has_spans(names, "auto", "data")
    assert spans_of(row, prefixed=True) == SPANS
    assert span_types(names, prefixed=True) == ("LOC", "PER")
    assert row[2] == "O"


def test_the_middle_of_bmes() -> None:
    tags = ["B-x", "M-x", "E-x", "S-y", "O"]
    assert standard_tags(tags, "d") == {"M-x": "I-x"}


def test_letters_alone_are_spans_of_one_type(tmp_path: Path) -> None:
    splits = load(tmp_path, ["b", "i", "o", "o", "b"])
    assert splits.label_names == ("B", "I", "O")
    assert has_spans(splits.label_names, "auto", "data")
    assert spans_of(splits.train[0]["tags"], prefixed=True) == [("span", 0, 1), ("span", 4, 4)]
    assert span_types(splits.label_names, prefixed=True) == ("span",)


@pytest.mark.parametrize(
    "tags",
    [["NN", "NNS", "VBD", "IN", "NN"], ["noun", "noun", "o", "adp", "noun"],
     ["PER", "PER", "O", "O", "LOC"]],
)  # fmt: skip
def test_plain_tags_stay_as_they_are(tags: list[str], tmp_path: Path) -> None:
    splits = load(tmp_path, tags)
    assert splits.train[0]["tags"] == tags
    assert not has_spans(splits.label_names or (), "auto", "data")


@pytest.mark.parametrize("tags", [[1, 2, 0, 0, 3], ["1", "2", "0", "0", "3"], [1, 2, 0, -100, 3]])
def test_numbers_need_names(tags: list[Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"without names \(0, 1, 2, 3\).*data\.label_names"):
        load(tmp_path, tags)
    names = ["O", "B-PER", "I-PER", "B-LOC"]
    named = load(tmp_path, tags, label_names=names)
    wanted = [None if tag == -100 else word for tag, word in zip(tags, TRUTH, strict=True)]
    assert named.train[0]["tags"] == wanted
    (tmp_path / "labels.json").write_text(json.dumps(names))
    assert load(tmp_path, tags).train[0]["tags"] == wanted


@pytest.mark.parametrize("prefix", ["LABEL_", "T", "tag-"])
def test_numbers_behind_one_word_are_no_names(prefix: str, tmp_path: Path) -> None:
    tags = [f"{prefix}{number}" for number in (1, 2, 0, 0, 3)]
    with pytest.raises(DataError, match=rf"without names \({prefix}0, .*Write that one as O"):
        load(tmp_path, tags)
    named = load(tmp_path, tags, label_names=[f"{prefix}{number}" for number in range(4)])
    assert named.train[0]["tags"] == tags
    assert load(tmp_path, ["NN1", "NN2", "VB0", "VB0", "NN1"]).label_names == ("NN1", "NN2", "VB0")


def test_positions_without_a_tag(tmp_path: Path) -> None:
    splits = load(tmp_path, ["B-PER", "-100", "O", -100, "B-LOC"])
    assert splits.train[0]["tags"] == ["B-PER", None, "O", None, "B-LOC"]
    assert splits.label_names == ("B-LOC", "B-PER", "O")
    assert "without a tag 4; 10 tokens in 2 training rows" in splits.understood


def test_tags_that_become_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'B-PER' and 'b-per'"):
        load(tmp_path, ["B-PER", "b-per", "O", "O", "O"])
    with pytest.raises(DataError, match="would be one tag"):
        load(tmp_path, ["B-PER", "B_PER", "O", "O", "I-PER"])


def test_a_missing_tag_is_a_bad_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="None in a list of labels"):
        load(tmp_path, ["B-PER", None, "O", "O", "O"])
