"""Every format of rows: its columns, the values that a task gets, refusals in one line."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from peftlab.data.bad_rows import LEAVE_OUT
from peftlab.data.formats import FORMATS
from peftlab.data.loading import load_splits
from peftlab.data.splits import Splits
from peftlab.errors import DataError

datasets = pytest.importorskip("datasets")

CHAT = ("messages", "sharegpt", "alpaca", "prompt-completion", "text")
TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def write(folder: Path, *rows: dict[str, Any], name: str = "train.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def load(source: str, *formats: str, **options: Any) -> Splits:
    roles = dict.fromkeys(role for name in formats for role in FORMATS[name].roles)
    return load_splits(source, formats=formats, roles=tuple(roles), validation=0, **options)


def read(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its conversation read from the JSON text that stores it."""
    nested = ("messages", "tools", "chat_template_kwargs")
    return {k: json.loads(v) if k in nested and v is not None else v for k, v in row.items()}


def test_every_format_of_the_configuration_is_there() -> None:

    for name, form in FORMATS.items():
        assert form.name == name
        assert form.roles.keys() <= form.usual.keys() | {"text_pair"}
        assert form.targets <= form.roles.keys()


FOUND: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "messages": ({"id": "a", "messages": TURNS}, "messages",
                 {"messages": TURNS, "prompt_messages": 0}),
    "messages by another name": ({"conversations": TURNS}, "messages",
                                 {"messages": TURNS, "prompt_messages": 0}),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
        "sharegpt", {"messages": TURNS, "prompt_messages": 0},
    ),
    "alpaca": ({"instruction": "hi", "input": "", "output": "hello"}, "alpaca",
               {"messages": TURNS, "prompt_messages": 1}),
    "alpaca without input": ({"instruction": "hi", "output": "hello"}, "alpaca",
                             {"messages": TURNS, "prompt_messages": 1}),
    "prompt and completion in turns": (
        {"prompt": TURNS[:1], "completion": TURNS[1:]}, "messages",
        {"messages": TURNS, "prompt_messages": 1},
    ),
    "prompt-completion": ({"prompt": "a", "completion": "b"}, "prompt-completion",
                          {"prompt": "a", "completion": "b"}),
    "text": ({"text": "a"}, "text", {"text": "a"}),
}  # fmt: skip


@pytest.mark.parametrize("case", FOUND)
def test_what_a_language_model_reads(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row, name, given = FOUND[case]
    with caplog.at_level(logging.INFO, "peftlab"):
        splits = load(write(tmp_path, row, row), *CHAT)
    assert splits.format == name
    assert read(splits.train[0]) == given
    assert f"data format: {name} (columns" in caplog.text


CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1, "b": None}}}
AS_TEXT = {"function": {"name": "f", "arguments": '{"a": 1, "b": null}'}}
TOOL = {"name": "f", "description": "d", "parameters": {}}
ASKED = TURNS[0]


def answer(**more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "", **more}


CONVERSATIONS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "as JSON text": ("messages", {"messages": json.dumps(TURNS)}, {"messages": TURNS}),
    "calls": ("messages", {"messages": [ASKED, answer(content=None, tool_calls=[CALL])]},
              {"messages": [ASKED, answer(tool_calls=[CALL])]}),
    "arguments as JSON text": ("messages", {"messages": [ASKED, answer(tool_calls=[AS_TEXT])]},
                               {"messages": [ASKED, answer(tool_calls=[CALL])]}),
    "one call of old": ("messages", {"messages": [ASKED, answer(function_call=CALL["function"])]},
                        {"messages": [ASKED, answer(tool_calls=[CALL])]}),
    "results": (
        "messages",
        {"messages": [*TURNS, {"role": "function", "name": "f", "content": {"x": 1}}]},
        {"messages": [*TURNS, {"role": "tool", "name": "f", "content": '{"x": 1}'}]},
    ),
    "thoughts": ("messages", {"messages": [ASKED, {**TURNS[1], "reasoning_content": "hm"}]},
                 {"messages": [ASKED, {**TURNS[1], "reasoning_content": "hm"}]}),
    "parts": (
        "messages", {"messages": [{"role": "user", "content": ["hi"]}, TURNS[1]]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, TURNS[1]]},
    ),
    "weights": ("messages", {"messages": [ASKED, {**TURNS[1], "weight": 0.0, "train": False}]},
                {"messages": [ASKED, {**TURNS[1], "weight": 0, "train": False}]}),
    "an empty answer": ("messages", {"messages": [ASKED, answer()]},
                        {"messages": [ASKED, answer()]}),
    "several system turns": (
        "messages", {"messages": [{"role": "system", "content": "a"}, *TURNS,
                                  {"role": "system", "content": "b"}]},
        {"messages": [{"role": "system", "content": "a"}, *TURNS,
                      {"role": "system", "content": "b"}]},
    ),
    "tools and variables": (
        "messages",
        {"messages": TURNS, "tools": json.dumps([TOOL]), "chat_template_kwargs": {"x": None}},
        {"messages": TURNS, "tools": [{"type": "function", "function": TOOL}],
         "chat_template_kwargs": {"x": None}},
    ),
    "a system column": ("messages", {"messages": TURNS, "system": "be"},
                        {"messages": [{"role": "system", "content": "be"}, *TURNS]}),
    "sharegpt's roles": (
        "sharegpt",
        {"system": "be", "tools": json.dumps([TOOL]), "conversations": [
            {"from": "human", "value": "hi"},
            {"from": "function_call", "value": json.dumps(CALL["function"])},
            {"from": "observation", "value": "3"}, {"from": "gpt", "value": "hello"},
        ]},
        {"messages": [{"role": "system", "content": "be"}, ASKED, answer(tool_calls=[CALL]),
                      {"role": "tool", "content": "3"}, TURNS[1]],
         "tools": [{"type": "function", "function": TOOL}]},
    ),
    "alpaca's history": (
        "alpaca", {"system": "be", "history": [["a", "b"]], "instruction": "hi", "output": "hello"},
        {"messages": [{"role": "system", "content": "be"}, {"role": "user", "content": "a"},
                      {"role": "assistant", "content": "b"}, *TURNS], "prompt_messages": 4},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CONVERSATIONS)
def test_fields_of_conversations(case: str, tmp_path: Path) -> None:
    name, row, given = CONVERSATIONS[case]
    first = load(write(tmp_path, row, row), *CHAT).train[0]
    assert read(first) == {"prompt_messages": 0, **given}
    assert FORMATS[name].input_row(row)["messages"] == given["messages"]


def test_a_parquet_file_gives_no_row_the_keys_of_another(tmp_path: Path) -> None:
    calls = [answer(tool_calls=[{"function": {"name": "f", "arguments": arguments}}])
             for arguments in ({"a": 1}, {"b": 2})]  # fmt: skip
    rows = [{"messages": [ASKED, calls[0]]}, {"messages": [ASKED, calls[1]]}, {"messages": TURNS}]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "train.parquet"))
    turns = [json.loads(row["messages"])[1] for row in load(str(tmp_path), *CHAT).train]
    assert [turn["tool_calls"][0]["function"]["arguments"] for turn in turns[:2]] == [
        {"a": 1}, {"b": 2},
    ]  # fmt: skip
    assert turns[2] == TURNS[1]


def test_columns_that_conversations_do_not_read_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = {"messages": TURNS, "rejected": "no", "Reasoning": "hm", "id": 3}
    load(write(tmp_path, row, row), *CHAT)
    assert caplog.text.count("column 'rejected' is not read: answers that are to be avoided") == 1
    assert caplog.text.count("column 'Reasoning' is not read: thoughts are read from") == 1
    assert "'id'" not in caplog.text


def test_an_instruction_with_its_input(tmp_path: Path) -> None:
    row = {"instruction": "add", "input": "1 1", "output": "2"}
    turns = load(write(tmp_path, row, row), "alpaca").train[0]["messages"]
    assert json.loads(turns)[0] == {"role": "user", "content": "add\n\n1 1"}


def test_tags_by_name_and_by_number(tmp_path: Path) -> None:
    rows = [{"tokens": ["A", "b"], "ner_tags": ["B-x", "O"]}, {"tokens": ["c"], "ner_tags": ["O"]}]
    splits = load(write(tmp_path, *rows), "tokens-tags")
    assert splits.label_names == ("B-x", "O")
    assert splits.train[0] == {"tokens": ["A", "b"], "tags": ["B-x", "O"]}
    numbered = tmp_path / "numbered"
    numbered.mkdir()
    (numbered / "labels.json").write_text('["O", "B-x"]')
    write(numbered, {"words": ["A", "b"], "tags": [1, 0]}, {"words": ["c"], "tags": [0]})
    splits = load(str(numbered), "tokens-tags")
    assert splits.train["tags"] == [["B-x", "O"], ["O"]]
    assert splits.columns == {"tokens": "words", "tags": "tags"}


def test_tags_that_a_class_label_names(tmp_path: Path) -> None:
    names = datasets.ClassLabel(names=["O", "B-x"])
    features = datasets.Features(
        {"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(names)}
    )
    rows = {"tokens": [["A", "b"], ["c"]], "ner_tags": [[1, 0], [0]]}
    datasets.Dataset.from_dict(rows, features).to_parquet(str(tmp_path / "train.parquet"))
    splits = load(str(tmp_path), "tokens-tags")
    assert splits.label_names == ("O", "B-x")
    assert splits.train["tags"] == [["B-x", "O"], ["O"]]


def test_a_tag_that_train_lacks_is_known(tmp_path: Path) -> None:
    write(tmp_path, {"tokens": ["a"], "tags": ["O"]}, {"tokens": ["b"], "tags": ["O"]})
    write(tmp_path, {"tokens": ["C"], "tags": ["B-y"]}, name="test.jsonl")
    assert load(str(tmp_path), "tokens-tags").label_names == ("B-y", "O")


def test_lists_in_csv_are_json(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(
        'tokens,ner_tags\n"[""a"", ""b""]","[""O"", ""B-x""]"\n"[""c""]","[""O""]"\n'
    )
    splits = load(str(tmp_path), "tokens-tags")
    assert splits.train[0] == {"tokens": ["a", "b"], "tags": ["O", "B-x"]}
    (tmp_path / "train.csv").write_text("tokens,ner_tags\na b,O B-x\nc,O\n")
    with pytest.raises(DataError, match=r"train.csv:2.*'a b', which is not a JSON list"):
        load(str(tmp_path), "tokens-tags")


QUESTION = {"id": "q", "question": "Who?", "context": "It was Ann. Ann!"}


@pytest.mark.parametrize(
    "answers",
    [
        {"text": ["Ann", "Ann"], "answer_start": [7, 12]},
        [{"text": "Ann", "answer_start": 7}, {"text": "Ann", "answer_start": 12}],
    ],
)
def test_questions_and_answers(answers: Any, tmp_path: Path) -> None:
    none = {**QUESTION, "answers": {"text": [], "answer_start": []}, "is_impossible": True}
    row = {**QUESTION, "answers": answers, "is_impossible": False}
    splits = load(write(tmp_path, row, none), "squad")
    assert splits.train[0] == {
        **QUESTION, "answers": {"text": ["Ann", "Ann"], "answer_start": [7, 12]}
    }  # fmt: skip
    assert splits.train[1]["answers"] == {"text": [], "answer_start": []}
    assert load(write(tmp_path, {k: v for k, v in row.items() if k != "id"}, row), "squad").train[
        0
    ]["id"] in ("Who?", "q")


def test_the_nested_file_that_squad_is_published_as(tmp_path: Path) -> None:
    answer = {"text": "Ann", "answer_start": 7}
    questions = [
        {"id": "1", "question": "Who?", "answers": [answer], "is_impossible": False},
        {"id": "2", "question": "Why?", "answers": [], "is_impossible": True,
         "plausible_answers": [answer]},
    ]  # fmt: skip
    paragraph = {"context": QUESTION["context"], "qas": questions}
    whole = {"version": "v2.0", "data": [{"title": "T", "paragraphs": [paragraph]}]}
    (tmp_path / "train.json").write_text(json.dumps(whole))
    rows = load(str(tmp_path), "squad").train
    assert rows["id"] == ["1", "2"]
    assert rows["answers"][0] == {"text": ["Ann"], "answer_start": [7]}
    assert rows["answers"][1] == {"text": [], "answer_start": []}


@pytest.mark.parametrize(
    "row",
    [
        {"text": "The <e1>cat</e1> sat on <e2>a mat</e2>."},
        {"text": "The cat sat on a mat.", "head": [4, 7], "tail": {"start": 15, "end": 20}},
        {"tokens": ["The", "cat", "sat", "on", "a", "mat."], "e1": [1, 2], "e2": [4, 6]},
    ],
)
def test_relations(row: dict[str, Any], tmp_path: Path) -> None:
    rows = [{**row, "relation": "on"}, {**row, "relation": "off"}]
    splits = load(write(tmp_path, *rows), "relation")
    one = splits.train[0]
    assert one["text"] == "The cat sat on a mat."
    assert one["label"] == "on"
    assert one["head"] == {"start": 4, "end": 7}
    tail_text = one["text"][one["tail"]["start"] : one["tail"]["end"]]
    assert tail_text == ("a mat." if "tokens" in row else "a mat")
    assert splits.label_names == ("off", "on")


def test_references_that_only_a_held_out_split_has(tmp_path: Path) -> None:
    row = {"input": "a", "output": "b"}
    write(tmp_path, row, row)
    write(tmp_path, {**row, "references": ["b", "c"]}, name="test.jsonl")
    splits = load(str(tmp_path), "prompt-completion")
    assert "references" not in splits.train.column_names
    assert splits.get("test")["references"] == [["b", "c"]]


def test_labels_in_lists_and_as_numbers(tmp_path: Path) -> None:
    write(tmp_path, {"text": "a", "label": ["x", "y"]}, {"text": "b", "label": []})
    splits = load(str(tmp_path), "text-label", label_kind="auto")
    assert (splits.label_kind, splits.label_names) == ("many", ("x", "y"))
    assert splits.train["label"] == [["x", "y"], []]
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / "train.csv").write_text("text,score\na,1\nb,2.5\n")
    splits = load(str(tmp_path), "text-label", label_kind="number")
    assert (splits.label_kind, splits.label_names) == ("number", None)
    assert splits.train["label"] == [1.0, 2.5]


SPAN = {"text": "The cat sat.", "head": [4, 7], "tail": [8, 11], "label": "r"}
BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "ragged": ("tokens-tags", {"tokens": ["a", "b"], "tags": ["O"]},
               "the row has 2 tokens (column 'tokens') but 1 tags (column 'tags')"),
    "null tag": ("tokens-tags", {"tokens": ["a"], "tags": [None]}, "None in a list of labels"),
    "no tokens": ("tokens-tags", {"tokens": [], "tags": []}, "'tokens' is an empty list"),
    "number among tokens": ("tokens-tags", {"tokens": [3], "tags": ["O"]}, "3 (an integer)"),
    "answer elsewhere": (
        "squad", {**QUESTION, "answers": {"text": ["Ann"], "answer_start": [3]}},
        "the answer 'Ann' is not at answer_start 3; it is at 7",
    ),
    "answer nowhere": (
        "squad", {**QUESTION, "answers": {"text": ["Bob"], "answer_start": [3]}},
        "it is not in the context",
    ),
    "negative start": (
        "squad", {**QUESTION, "answers": {"text": ["n!"], "answer_start": [-2]}}, "at 14",
    ),
    "texts and starts": (
        "squad", {**QUESTION, "answers": {"text": ["Ann"], "answer_start": []}},
        "has 1 texts but 0 starts",
    ),
    "impossible, but answered": (
        "squad",
        {**QUESTION, "answers": {"text": ["Ann"], "answer_start": [7]}, "is_impossible": True},
        "the row is_impossible, but has the answer 'Ann'",
    ),
    "answers null": ("squad", {**QUESTION, "answers": None}, "'answers' is null or missing"),
    "overlapping spans": ("relation", {**SPAN, "tail": [6, 9]},
                          "the spans overlap: 'cat' and 't s'"),
    "span outside": ("relation", {**SPAN, "tail": [8, 40]}, "8 to 40, outside the 12 characters"),
    "span backwards": ("relation", {**SPAN, "tail": [9, 8]}, "9 to 8, outside"),
    "no marks": ("relation", {"text": "The cat sat.", "label": "r"}, "exactly once"),
    "marks twice": (
        "relation", {"text": "<e1>a</e1> <e1>b</e1> <e2>c</e2>", "label": "r"}, "exactly once",
    ),
    "marks crossed": (
        "relation", {"text": "<e1>a <e2>b</e1> c</e2>", "label": "r"}, "the spans overlap",
    ),
    "unknown role": ("messages", {"messages": [{"role": "robot", "content": "hi"}, *TURNS]},
                     "turn 1 of column 'messages' has the unknown role 'robot'"),
    "empty turn": ("messages", {"messages": [{"role": "user", "content": " "}, TURNS[1]]},
                   "turn 1 of column 'messages' is empty"),
    "null turn": ("messages", {"messages": [TURNS[0], {"role": "assistant", "content": None}]},
                  "turn 2 of column 'messages': column 'messages.content' is null"),
    "no answer to learn": ("messages", {"messages": TURNS[:1]}, "no assistant turn"),
    "no turn": ("messages", {"messages": []}, "has no turn"),
    "calls of a user": ("messages", {"messages": [{**TURNS[0], "tool_calls": [1]}, TURNS[1]]},
                        "turn 1 of column 'messages' has calls, but the role 'user'"),
    "a call that is none": ("messages", {"messages": [TURNS[0], {**TURNS[1], "tool_calls": [1]}]},
                            "has the call 1, which is not an object"),
    "a call without a name": (
        "messages", {"messages": [TURNS[0], {**TURNS[1], "tool_calls": [{"function": {}}]}]},
        "turn 2 of column 'messages' has a call without a name",
    ),
    "arguments that are none": (
        "messages",
        {"messages": [TURNS[0], {"role": "assistant", "function_call":
                                 {"name": "f", "arguments": "a = 1"}}]},
        "has a call of 'f' whose arguments are not an object in JSON",
    ),
    "a picture": (
        "messages", {"messages": [{"role": "user", "content": [{"type": "image"}]}, TURNS[1]]},
        "turn 1 of column 'messages' has a part of the type 'image'",
    ),
    "half a weight": ("messages", {"messages": [TURNS[0], {**TURNS[1], "weight": 0.5}]},
                      "has the weight 0.5; weights are 0 and 1"),
    "train in words": ("messages", {"messages": [TURNS[0], {**TURNS[1], "train": "yes"}]},
                       "has train = 'yes'; it is true or false"),
    "tools that are none": ("messages", {"messages": TURNS, "tools": [{"type": "function"}]},
                            "not a tool: an object with a name"),
    "a variable that is taken": (
        "messages", {"messages": TURNS, "chat_template_kwargs": {"tools": []}},
        "column 'chat_template_kwargs' sets tools, which the row itself gives",
    ),
    "history of another kind": ("alpaca", {"instruction": "a", "output": "b", "history": ["c"]},
                                "column 'history' holds 'c', not a question with its answer"),
    "turn of another kind": ("sharegpt", {"conversations": [{"from": "human"}]},
                             "turn 1 of column 'conversations' has no value"),
    "unknown speaker": ("sharegpt", {"conversations": [{"from": "dog", "value": "woof"}]},
                        "the unknown from 'dog'"),
    "empty output": ("alpaca", {"instruction": "a", "output": ""}, "'output' is empty"),
    "empty reference": ("prompt-completion",
                        {"prompt": "a", "completion": "b", "references": [""]},
                        "'references' has an empty text in its list"),
}  # fmt: skip
GOOD: dict[str, dict[str, Any]] = {
    "tokens-tags": {"tokens": ["a"], "tags": ["O"]},
    "squad": {**QUESTION, "answers": {"text": ["Ann"], "answer_start": [7]}},
    "relation": SPAN,
    "messages": {"messages": TURNS, "tools": None, "chat_template_kwargs": None},
    "sharegpt": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    "alpaca": {"instruction": "a", "output": "b", "history": []},
    "prompt-completion": {"prompt": "a", "completion": "b"},
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named(case: str, tmp_path: Path) -> None:
    name, row, expected = BAD[case]
    good = GOOD[name]
    if case in {"no marks", "marks twice", "marks crossed"}:
        good = {"text": "<e1>a</e1> <e2>b</e2>", "label": "s"}
    source = write(tmp_path, good, {**good, **row})
    with pytest.raises(DataError) as refused:
        load(source, name)
    message = str(refused.value)
    assert message.startswith(f"{tmp_path}/train.jsonl:2: ")
    assert expected in message
    first, *rest = message.splitlines()
    assert rest == [LEAVE_OUT]
    assert len(first) < 400


def test_labels_that_are_no_numbers(tmp_path: Path) -> None:
    source = write(tmp_path, {"text": "a", "label": 1}, {"text": "b", "label": "much"})
    with pytest.raises(DataError, match=r"train.jsonl:2: .*'much', not a finite number"):
        load(source, "text-label", label_kind="number")


def test_columns_of_no_format(tmp_path: Path) -> None:
    source = write(tmp_path, {"question": "a", "context": "b", "answers": "c"}, {"question": "a"})
    with pytest.raises(DataError, match=r"columns .* format squad.* the first row does not"):
        load(source, "squad", "relation")


def test_rows_to_predict_may_lack_targets() -> None:
    marked = FORMATS["relation"].input_row({"text": "<e1>a</e1> of <e2>b</e2>"})
    assert (marked["text"], marked["tail"]) == ("a of b", {"start": 5, "end": 6})
    question = FORMATS["squad"].input_row({"question": "Who?", "context": "Ann."})
    assert question == {"id": "Who?", "question": "Who?", "context": "Ann."}
    assert FORMATS["messages"].input_row({"messages": TURNS[:1]})["messages"] == TURNS[:1]
    assert FORMATS["alpaca"].input_row({"instruction": "hi"})["messages"] == TURNS[:1]
    assert FORMATS["tokens-tags"].input_row({"tokens": "a b"}) == {"tokens": "a b"}
    with pytest.raises(DataError, match="exactly once"):
        FORMATS["relation"].input_row({"text": "nothing marked"})


@pytest.mark.parametrize(
    ("name", "formats", "form", "columns"),
    [
        ("wnut17", ("tokens-tags",), "tokens-tags", {"tokens": "tokens", "tags": "ner_tags"}),
        ("semeval2010_task8", ("relation",), "relation", {"text": "text", "label": "label"}),
        ("squad_v2_small", ("squad",), "squad",
         {"question": "question", "context": "context", "answers": "answers", "id": "id"}),
        ("instruct_seed", CHAT, "messages", {"messages": "messages"}),
        ("alpaca_1k", CHAT, "alpaca",
         {"instruction": "instruction", "input": "input", "output": "output"}),
        ("gsm8k", CHAT, "prompt-completion", {"prompt": "prompt", "completion": "completion"}),
        ("e2e_nlg", CHAT, "prompt-completion",
         {"prompt": "input", "completion": "output", "references": "references"}),
        ("tatoeba_en_sv", CHAT, "prompt-completion", {"prompt": "input", "completion": "output"}),
        ("tinyshakespeare", CHAT, "text", {"text": "text"}),
        ("sst2", ("pair", "text-label"), "text-label", {"text": "text", "label": "label"}),
    ],
)  # fmt: skip
def test_real_data(
    name: str, formats: tuple[str, ...], form: str, columns: dict[str, str], shared_data: Path
) -> None:
    splits = load(str(shared_data / name), *formats)
    assert splits.format == form
    assert splits.columns == columns
    if name == "wnut17":
        assert splits.label_names is not None
        assert splits.label_names[0] == "O"
        assert len(splits.label_names) == 13
    if name == "semeval2010_task8":
        row = splits.train[0]
        assert row["text"][row["head"]["start"] : row["head"]["end"]] == "lava"
        assert "<e" not in row["text"]
