"""Files of annotated text, written from known data by their published descriptions, read equal."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftlab.config.tasks.options import TASKS
from peftlab.data.loading import load_splits
from peftlab.data.splits import Splits
from peftlab.errors import DataError
from tests.data.formats.known import ENTITIES, PAIRS, TAGGED, TOKENS, WANTED, marked

NER, RE, S2S = "token-classification", "relation-extraction", "seq2seq"


def load(source: Path, task: str, **settings: Any) -> Splits:
    kind = TASKS[task]
    return load_splits(
        str(source), formats=kind.formats, roles=kind.roles, validation=0.0, **settings
    )  # fmt: skip


def conll(line: Callable[[int, str, str], str], before: str = "", first: str = "") -> str:
    sentences = (
        before + "\n".join(line(at, word, tag) for at, (word, tag) in enumerate(row, start=1))
        for row in TAGGED
    )
    return first + "\n\n".join(sentences) + "\n"


def ontonotes() -> str:
    blocks = []
    for row in TAGGED:
        lines = []
        for at, (word, tag) in enumerate(row):
            following = row[at + 1][1] if at + 1 < len(row) else "O"
            cell = f"({tag[2:]}*" if tag.startswith("B-") else "*"
            cell += ")" if tag != "O" and not following.startswith("I-") else ""
            roles = ["*"] * (at % 2)
            lines.append("   ".join(["doc/1", "0", str(at), word, "NN", "*", "-", "-", "-", "spk",
                                     cell, *["*"] * (len(row) % 3), "-"]))  # fmt: skip
            assert roles is not None
        blocks.append("\n".join(lines))
    return "#begin document (doc/1); part 000\n" + "\n\n".join(blocks) + "\n\n#end document\n"


CONLL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "2003": ("train.txt", conll(lambda _, w, t: f"{w} NN B-NP {t}",
                                first="-DOCSTART- -X- -X- O\n\n"), {}),
    "2002": ("train.conll", conll(lambda _, w, t: f"{w} {t}"), {}),
    "two columns, tabs, any extension": ("train.data", conll(lambda _, w, t: f"{w}\t{t}"), {}),
    "tsv": ("train.tsv", conll(lambda _, w, t: f"{w}\t{t}"), {}),
    "header": ("train.tsv", conll(lambda _, w, t: f"{w}\t{t}", first="token\tlabel\n"), {}),
    "iob2 with ids and comments": (
        "train.iob2", conll(lambda i, w, t: f"{i}\t{w}\t{t}\t-\t-", before="# text = a b\n"), {}),
    "MultiCoNER": ("train.conll", conll(lambda _, w, t: f"{w} _ _ {t}",
                                        before="# id 5 domain=en\n"), {}),
    "CRLF": ("train.bio", conll(lambda _, w, t: f"{w} {t}").replace("\n", "\r\n"), {}),
    "by number": ("train.conll", conll(lambda _, w, t: f"{w} {t} X"), {"tags": "2"}),
    "CoNLL-U": ("train.conllu", conll(
        lambda i, w, t: "\t".join([str(i), w, w, "NOUN", t, "_", "0", "root", "_", "_"]),
        before="# sent_id = 1\n"), {"tags": "5"}),
    "2012": ("train.conll", ontonotes(), {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CONLL)
def test_conll_reads_as_it_was_written(case: str, tmp_path: Path) -> None:
    name, content, columns = CONLL[case]
    file = tmp_path / name
    file.write_bytes(content.encode())
    splits = load(file, NER, columns=columns)
    rows = [{"tokens": row["tokens"], "tags": row["tags"]} for row in splits.train]
    assert rows == TOKENS
    assert splits.format == "tokens-tags"


def test_conll_says_which_column_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "peftlab")
    file = tmp_path / "a.conll"
    file.write_text(conll(lambda _, w, t: f"{w} NN {t}"))
    load(file, NER)
    assert "tokens are column 1 and tags column 3 of 3" in caplog.text


BAD_CONLL: dict[str, tuple[str, str, str]] = {
    "columns": ("a.conll", "Ada B-PER\nlives\n\nin O\n", "a.conll:2 has 1 columns ('lives')"),
    "one column": ("a.conll", "Ada\nlives\n\n", "a.conll:1 has one column"),
    "no token": ("a.conll", "Ada\tB-PER\n\tO\n", "a.conll:2 has a tag and no token"),
    "comments alone": ("a.conll", "# a b c\n\n", "no line with a token"),
    "CoNLL-U": ("a.conllu", "\t".join(["1", "Ada", "Ada", *"ABCDEFG"]) + "\n",
                "no column for 'tags'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CONLL)
def test_conll_that_cannot_be_read(case: str, tmp_path: Path) -> None:
    name, content, what = BAD_CONLL[case]
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as error:
        load(tmp_path / name, NER)
    assert what in str(error.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.txt", "A line of text.\nAnother line.\n\nA third one.\n"),
        ("train.txt", "To be\nor not\n\nto be\n"),
        ("train.txt", '1 "Quoted" is it\n2 "Twice"\n'),
    ],
)
def test_lines_of_text_stay_lines_of_text(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    splits = load(tmp_path / name, "causal-lm")
    assert splits.train["text"][:] == [line for line in content.splitlines() if line]


def test_a_table_is_no_conll(tmp_path: Path) -> None:
    file = tmp_path / "train.tsv"
    file.write_text("text\tlabel\na b\tO\n\nc d\tB-x\n\n")
    kind = TASKS["text-classification"]
    splits = load_splits(str(file), formats=kind.formats, roles=kind.roles, validation=0.0)
    assert splits.train["label"][:] == ["O", "B-x"]


def semeval() -> str:
    rows = marked("<e1>", "<e2>")
    return "".join(
        f'{at}\t"{row["sentence"]}"\n{row["relation"]}\nComment: none\n\n'
        for at, row in enumerate(rows, start=1)
    )


def test_relations_in_text_files(tmp_path: Path) -> None:
    file = tmp_path / "TRAIN_FILE.TXT"
    file.write_text(semeval())
    splits = load(file, RE)
    names = WANTED[RE][0]
    assert [{name: row[name] for name in names} for row in splits.train] == WANTED[RE]


def test_sentences_without_relations_are_unlabelled(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(semeval())
    unlabelled = '8001\t"<e1>a</e1> of <e2>b</e2>"\n8002\t"<e1>c</e1> <e2>d</e2>"\n'
    (tmp_path / "test.txt").write_text(unlabelled)
    assert load(tmp_path, RE).test is None
    broken = semeval().replace("Comment: none\n\n2", "second\n2")
    (tmp_path / "train.txt").write_text(broken)
    with pytest.raises(DataError, match=r"train\.txt:3 holds 'second' where a numbered sentence"):
        load(tmp_path, RE)


@pytest.mark.parametrize("sides", [("src", "tgt"), ("source", "target"), ("en", "de")])
def test_parallel_lines(sides: tuple[str, str], tmp_path: Path) -> None:
    for split in ("train", "valid"):
        for at, side in enumerate(sides):
            (tmp_path / f"{split}.{side}").write_text("".join(pair[at] + "\n" for pair in PAIRS))
    columns = {"prompt": "en", "completion": "de"} if "en" in sides else {}
    kind = TASKS[S2S]
    splits = load_splits(str(tmp_path), formats=kind.formats, roles=kind.roles, columns=columns)
    for part in (splits.train, splits.get("validation")):
        rows = [{"prompt": row["prompt"], "completion": row["completion"]} for row in part]
        assert rows == WANTED[S2S]


def test_parallel_lines_that_do_not_agree(tmp_path: Path) -> None:
    (tmp_path / "train.en").write_text("a\nb\nc\n")
    (tmp_path / "train.de").write_text("x\ny\n")
    with pytest.raises(DataError, match=r"train\.en:3: .*train\.de ends before this line"):
        load(tmp_path, S2S, columns={"prompt": "en", "completion": "de"})
    (tmp_path / "train.de").write_text("x\ny\nz\n")
    with pytest.raises(DataError, match=r"no column for 'prompt'.*its columns are de, en"):
        load(tmp_path, S2S)


def test_what_parallel_lines_are_not(tmp_path: Path) -> None:
    for name in ("train.en", "train.de", "test.en", "notes.doc"):
        (tmp_path / name).write_text("a\nb\n")
    columns = {"prompt": "en", "completion": "de"}
    with pytest.raises(DataError, match="test has the sides en; parallel lines are in two files"):
        load(tmp_path, S2S, columns=columns)
    (tmp_path / "test.de").write_text("x\ny\n")
    assert load(tmp_path, S2S, columns=columns).test is not None
    for name in ("train.png", "train.jpg"):
        (tmp_path / name).write_text("a")
    with pytest.raises(DataError, match="train has the sides de, en, jpg, png"):
        load(tmp_path, S2S, columns=columns)
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 2)
    assert load(tmp_path, S2S).train["prompt"][:] == ["a", "a"]


def write_brat(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for at, (text, spans, _) in enumerate(ENTITIES):
        (folder / f"doc{at}.txt").write_text(text)
        lines = [f"T{i}\t{label} {s} {e}\t{text[s:e]}\n"
                 for i, (s, e, label) in enumerate(spans, start=1)]  # fmt: skip
        (folder / f"doc{at}.ann").write_text("".join([*lines, "#1\tAnnotatorNotes T1\tsure\n"]))


def test_brat(tmp_path: Path) -> None:
    write_brat(tmp_path / "train")
    write_brat(tmp_path / "test")
    splits = load(tmp_path, NER)
    assert splits.test is not None
    for part in (splits.train, splits.test):
        assert [{"tokens": row["tokens"], "tags": row["tags"]} for row in part] == TOKENS
    assert splits.format == "char-spans"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("T9\tPER 0 3;14 20\tAda London\n", "doc0.ann:1: the entity 'Ada London' is in several"),
        ("T9\tPER 0 3\tBob\n", "said to be 'Bob'"),
        ("T9\tPER 0 300\tAda\n", "said to be 'Ada'"),
        ("T9 PER 0 3 Ada\n", "doc0.ann:1: 'T9 PER 0 3 Ada' is not ID, tab"),
    ],
)
def test_brat_that_cannot_be_read(line: str, what: str, tmp_path: Path) -> None:
    write_brat(tmp_path)
    (tmp_path / "doc0.ann").write_text(line)
    with pytest.raises(DataError) as error:
        load(tmp_path, NER)
    assert what in str(error.value)
    assert "doc0" in str(error.value)


def test_docbin(tmp_path: Path) -> None:
    spacy = pytest.importorskip("spacy")
    from spacy.tokens import Doc, DocBin

    vocab = spacy.blank("en").vocab
    docs = [Doc(vocab, words=row["tokens"], ents=row["tags"]) for row in TOKENS]
    DocBin(docs=docs).to_disk(tmp_path / "train.spacy")
    splits = load(tmp_path / "train.spacy", NER)
    assert [{"tokens": row["tokens"], "tags": row["tags"]} for row in splits.train] == TOKENS
    (tmp_path / "train.spacy").write_bytes(b"not one")
    with pytest.raises(DataError, match="is no readable DocBin"):
        load(tmp_path / "train.spacy", NER)


def test_docbin_without_spacy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "spacy.tokens", None)
    (tmp_path / "train.spacy").write_bytes(b"x")
    with pytest.raises(DataError, match=r"reading it needs spaCy: pip install 'peftlab\[spacy\]'"):
        load(tmp_path / "train.spacy", NER)
