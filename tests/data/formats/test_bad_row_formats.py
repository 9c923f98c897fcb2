"""Rows of each format that cannot be used, rows that look like another format, and predictions."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from peftlab.config.tasks.options import TASKS
from peftlab.data.formats import FORMATS
from peftlab.data.formats.spans.words import tagged_words, words_of
from peftlab.data.loading import load_splits
from peftlab.data.splits import Splits
from peftlab.errors import ConfigError, DataError

NER, RE, QA, TC, S2S = (
    "token-classification", "relation-extraction", "question-answering", "text-classification",
    "seq2seq",
)  # fmt: skip
GOOD_SPANS = {"text": "Ada lives", "spans": [[0, 3, "PER"]]}
TOKENS = ["Ada", "was", "in", "Rome"]
TACRED = {"token": TOKENS, "subj_start": 0, "subj_end": 0, "obj_start": 3, "obj_end": 3,
          "relation": "in"}  # fmt: skip
NRE = {"token": TOKENS, "h": {"pos": [0, 1]}, "t": {"pos": [3, 4]}, "relation": "in"}
ANSWER = {"question": "Who?", "context": "Ada met Ada.", "answer_text": "Ada", "answer_start": 0}
STUDIO: dict[str, Any] = {
    "data": {"text": "Ada lives"},
    "annotations": [{"result": [{"value": {"start": 0, "end": 3, "labels": ["PER"]}}]}],
}


def studio(value: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**STUDIO, "annotations": [{"result": [{"value": value}]}], **more}


def load(folder: Path, rows: list[Any], task: str, **settings: Any) -> Splits:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    kind = TASKS[task]
    return load_splits(
        str(file), formats=settings.pop("formats", kind.formats), roles=kind.roles,
        label_kind=kind.model_validate({"name": task}).label_kind, validation=0.0, **settings,
    )  # fmt: skip


# The task, rows of which the last is bad, and what is said of its line.
BAD: dict[str, tuple[str, list[Any], str]] = {
    "outside": (NER, [GOOD_SPANS, {"text": "Ada", "spans": [[0, 9, "PER"]]}],
                "the span 0 to 9 ('PER') is outside the 3 characters"),
    "before": (NER, [GOOD_SPANS, {"text": "Ada", "spans": [[-2, 1, "PER"]]}], "span -2 to 1"),
    "empty": (NER, [GOOD_SPANS, {"text": "Ada", "spans": [[1, 1, "PER"]]}], "or empty"),
    "white": (NER, [GOOD_SPANS, {"text": "Ada is", "spans": [[3, 4, "PER"]]}], "white space only"),
    "overlap": (NER, [GOOD_SPANS, {"text": "New York Times",
                                   "spans": [[0, 8, "LOC"], [0, 14, "ORG"]]}],
                "'New York' (LOC) and 'New York Times' (ORG) overlap"),
    "no label": (NER, [GOOD_SPANS, {"text": "Ada", "spans": [{"start": 0, "end": 3, "label": ""}]}],
                 "has no label"),
    "two labels": (NER, [GOOD_SPANS, {"text": "Ada", "spans": [
        {"start": 0, "end": 3, "labels": ["A", "B"]}]}], "['A', 'B']"),
    "quoted otherwise": (NER, [GOOD_SPANS, {"text": "Ada is", "spans": [
        {"start": 0, "end": 3, "label": "A", "text": "Bob"}]}], "said to be 'Bob', but the text"),
    "no spans": (NER, [GOOD_SPANS, {"text": "Ada", "spans": "PER"}], "holds 'PER', not a list"),
    "null spans": (NER, [GOOD_SPANS, {"text": "Ada", "spans": None}], "is null or missing"),
    "no text": (NER, [GOOD_SPANS, {"text": "", "spans": []}], "the text is null, missing or empty"),
    "studio outside": (NER, [STUDIO, studio({"start": 5, "end": 99, "labels": ["A"]})],
                       "outside the 9 characters"),
    "studio differing": (NER, [STUDIO, {**STUDIO, "annotations": [
        *STUDIO["annotations"], {"result": []}]}], "2 annotations that differ"),
    "studio text": (NER, [STUDIO, {**STUDIO, "data": {"a": "Ada", "b": "Ada"}}],
                    "which is the text?"),
    "token counts": (NER, [{"tokens": TOKENS, "tags": ["O"] * 4},
                           {"tokens": TOKENS, "tags": ["O"]}],
                     "4 tokens (column 'tokens') but 1 tags"),
    "a token's tag": (NER, [{"sentence_id": 1, "word": "a", "tag": "O"},
                            {"sentence_id": 2, "word": "b", "tag": None}],
                      "row 1 of the sentence has an empty tag (column 'tag')"),
    "tacred outside": (RE, [TACRED, {**TACRED, "obj_end": 4}], "the span 3 to 5, outside the 4"),
    "tacred text": (RE, [TACRED, {**TACRED, "obj_end": "x"}], "not a span"),
    "tacred one entity": (RE, [TACRED, {**TACRED, "obj_start": 0, "obj_end": 3}], "overlap"),
    "opennre outside": (RE, [NRE, {**NRE, "t": {"pos": [3, 9]}}], "the span 3 to 9, outside the 4"),
    "opennre no place": (RE, [NRE, {**NRE, "t": {"name": "x"}}], "the tail is {'name': 'x'}"),
    "one mark": (RE, [{"text": "[E1]a[/E1] of [E2]b[/E2]", "label": "in"},
                      {"text": "[E1]a[/E1] of b", "label": "in"}], "exactly once each"),
    "not there": (QA, [ANSWER, {**ANSWER, "answer_text": "Bob"}], "not at answer_start 0"),
    "start": (QA, [ANSWER, {**ANSWER, "answer_start": 1.5}], "the start 1.5"),
    "two places": (QA, [ANSWER, {**ANSWER, "answer_start": None}],
                   "in the context more than once"),
    "starts": (QA, [ANSWER, {**ANSWER, "answer_start": [0, 8]}], "1 answers, but 'answer_start'"),
    "no answer": (QA, [ANSWER, {**ANSWER, "answer_text": ""}], "marked in a column is_impossible"),
    "impossible": (QA, [ANSWER, {**ANSWER, "is_impossible": True}], "is_impossible, but has"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named_with_its_line_and_cause(case: str, tmp_path: Path) -> None:
    task, rows, what = BAD[case]
    with pytest.raises(DataError) as error:
        load(tmp_path, rows, task)
    assert what in str(error.value)
    assert f"rows.jsonl:{len(rows)}" in str(error.value)


def test_bad_rows_of_spans_can_be_left_out(tmp_path: Path) -> None:
    rows = [GOOD_SPANS, GOOD_SPANS, {"text": "Ada", "spans": [[0, 9, "PER"]]}, GOOD_SPANS]
    splits = load(tmp_path, rows, NER, on_bad_rows="drop")
    assert splits.train.num_rows == 3
    json.dumps(splits.dropped[0].row)


def test_rejected_rows_are_counted_and_not_trained(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "peftlab")
    rows = [{"text": f"t{i}", "label": "ab"[i % 2], "answer": a}
            for i, a in enumerate(("accept", "accept", "reject", "ignore", "reject"))]  # fmt: skip
    assert load(tmp_path, rows, TC).train["text"][:] == ["t0", "t1"]
    said = "2 rows are used and 3 left out (1 with answer ignore, 2 with answer reject)"
    assert caplog.text.count(said) == 1
    for row in rows:
        row["answer"] = "reject"
    with pytest.raises(DataError, match="no row is left to use"):
        load(tmp_path, rows, TC)


def test_an_answer_that_is_none_of_prodigys_is_another_column(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": "ab"[i % 2], "answer": "42"} for i in range(4)]
    splits = load(tmp_path, rows, TC)
    assert (splits.format, splits.train.num_rows) == ("text-label", 4)


TWINS: dict[str, tuple[str, dict[str, Any], str]] = {
    "tokens beside spans": (NER, {"tokens": ["a"], "tags": ["O"], "spans": [[0, 1, "X"]],
                                  "text": "a"}, "tokens-tags"),
    "a text that begins with a bracket": (NER, {"text": "[1] Ada", "label": [[4, 7, "PER"]]},
                                          "char-spans"),
    "squad beside a text": (QA, {**ANSWER, "answers": {"text": ["Ada"], "answer_start": [0]}},
                            "squad"),
    "spans of tokens": (RE, {"tokens": TOKENS, "h": [0, 1], "t": [3, 4], "relation": "in"},
                        "relation"),
    "tags are a list": (TC, {"text": "a", "label": "x", "accept": "yes"}, "text-label"),
}  # fmt: skip


@pytest.mark.parametrize("case", TWINS)
def test_rows_that_look_like_another_format(case: str, tmp_path: Path) -> None:
    task, row, form = TWINS[case]
    rows = [row, {**row, **{TC: {"label": "y"}, RE: {"relation": "of"}}.get(task, {})}]
    assert load(tmp_path, rows, task).format == form


def test_lists_in_cells_are_no_tokens_a_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    row = 'a b,"[""a"", ""b""]","[""O"", ""O""]"\n'
    file.write_text(f"sentence,words,tags\n{row}{row.replace('a', 'c')}")
    kind = TASKS[NER]
    splits = load_splits(str(file), formats=kind.formats, roles=kind.roles, validation=0.0)
    assert splits.format == "tokens-tags"
    assert splits.train["tokens"][:] == [["a", "b"], ["c", "b"]]


def test_a_direction_is_asked_for(tmp_path: Path) -> None:
    rows = [{"translation": {"en": "a", "de": "b"}}] * 3
    with pytest.raises(ConfigError, match=r"which is translated into which\? Set data\.columns"):
        load(tmp_path, rows, S2S)


def test_a_path_leads_into_objects(tmp_path: Path) -> None:
    rows = [{"meta": {"body": f"t{i}", "tag": {"of": "ab"[i % 2]}}} for i in range(4)]
    splits = load(tmp_path, rows, TC, columns={"text": "meta.body", "label": "meta.tag.of"})
    assert splits.train["text"][:] == ["t0", "t1", "t2", "t3"]
    assert splits.train["label"][:] == ["a", "b", "a", "b"]
    with pytest.raises(DataError, match=r"has no column 'metta\.body'"):
        load(tmp_path, rows, TC, columns={"text": "metta.body", "label": "meta.tag.of"})
    del rows[2]["meta"]["body"]
    with pytest.raises(DataError, match=r"jsonl:3.*'meta\.body' is null or missing"):
        load(tmp_path, rows, TC, columns={"text": "meta.body", "label": "meta.tag.of"})


def test_columns_that_are_not_read_are_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = {"prompt": "a", "completion": "b", "rejected": "c", "reasoning": "d", "id": 1}
    load(tmp_path, [row] * 3, S2S)
    assert caplog.text.count("column 'rejected' is not read: answers that are to be avoided") == 1
    assert caplog.text.count("column 'reasoning' is not read: thoughts") == 1
    assert "'id'" not in caplog.text


def test_sentences_that_do_not_stand_together(tmp_path: Path) -> None:
    rows = [{"sentence_id": i, "word": "a", "tag": "O"} for i in (1, 2, 1)]
    with pytest.raises(DataError, match=r"rows\.jsonl:3: the rows of sentence 1 .* sort the file"):
        load(tmp_path, rows, NER)


def test_a_test_split_may_lack_optional_columns(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps(GOOD_SPANS) + "\n")
    (tmp_path / "train.jsonl").write_text(
        2 * (json.dumps({**GOOD_SPANS, "answer": "accept"}) + "\n")
    )
    kind = TASKS[NER]
    splits = load_splits(str(tmp_path), formats=kind.formats, roles=kind.roles, validation=0.0)
    assert splits.test is not None
    assert splits.test["tags"][:] == [["B-PER", "O"]]


def test_what_is_predicted_is_cut_as_in_training() -> None:
    row = FORMATS["char-spans"].input_row({"tokens": "O'Neil, here."})
    assert row == {"text": "O'Neil, here.", "tokens": ["O", "'", "Neil", ",", "here", "."]}
    data = {"data": {"text": "a b"}, "annotations": []}
    assert FORMATS["label-studio-spans"].input_row(data)["tokens"] == ["a", "b"]
    assert FORMATS["tacred"].input_row(TACRED)["head"] == {"start": 0, "end": 3}
    assert FORMATS["opennre"].input_row(NRE)["tail"] == {"start": 11, "end": 15}
    assert FORMATS["qa-flat"].input_row(ANSWER)["question"] == "Who?"


def test_words_say_nothing_of_spans() -> None:
    text = "A cat, ไทย 3.5 naïve_x"
    words = [text[a:b] for a, b in words_of(text)]
    assert words == ["A", "cat", ",", "ไ", "ท", "ย", "3", ".", "5", "naïve_x"]
    assert tagged_words(text, [])[0] == words
    assert tagged_words(text, [(1, 6, "X")]) == (words, ["O", "B-X", "I-X", *["O"] * 7])
