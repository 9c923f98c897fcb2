"""Turns of conversations: what is read of each, and what is a problem of its row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftlab.data.formats import FORMATS
from peftlab.data.loading import load_splits
from peftlab.errors import DataError

pytest.importorskip("datasets")

ASK, SAY = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
SYSTEM = {"role": "system", "content": "be"}
HALF = "a\ud800"


def talk(*turns: Any, **more: Any) -> dict[str, Any]:
    return {"messages": list(turns), **more}


def say(**more: Any) -> dict[str, Any]:
    return talk(ASK, {**SAY, **more})


def call(**more: Any) -> dict[str, Any]:
    return say(tool_calls=[more])


def load(folder: Path, name: str, row: dict[str, Any]) -> dict[str, Any]:
    (folder / "train.jsonl").write_text((json.dumps(row) + "\n") * 2)
    roles = tuple(FORMATS[name].roles)
    return load_splits(str(folder), formats=(name,), roles=roles, validation=0).train[0]


def turn_call(arguments: Any, **more: Any) -> dict[str, Any]:
    function = {"name": "f", "arguments": arguments}
    return {**SAY, "tool_calls": [{**more, "type": "function", "function": function}]}


READ: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "a system column that the turns repeat": (
        talk(SYSTEM, ASK, SAY, system="be"), [SYSTEM, ASK, SAY]),
    "a blank system turn": (
        talk({**SYSTEM, "content": " "}, ASK, SAY, system="be"), [SYSTEM, ASK, SAY]),
    "a blank system column": (talk(SYSTEM, ASK, SAY, system=" "), [SYSTEM, ASK, SAY]),
    "thoughts in parts": (
        say(reasoning_content=[{"type": "text", "text": "h"}, "m"]),
        [ASK, {**SAY, "reasoning_content": "hm"}]),
    "numbers as ids": (
        talk(ASK, {**SAY, "tool_calls": [{"id": 7, "name": "f"}]},
             {"role": "tool", "content": "3", "tool_call_id": 7}),
        [ASK, turn_call({}, id="7"), {"role": "tool", "content": "3", "tool_call_id": "7"}]),
    "null arguments beside parameters": (
        call(name="f", arguments=None, parameters={"a": 1}), [ASK, turn_call({"a": 1})]),
    "input as arguments": (call(name="f", input={"a": 1}), [ASK, turn_call({"a": 1})]),
    "a null function": (
        call(function=None, name="f", arguments={"a": 1}), [ASK, turn_call({"a": 1})]),
    "loss": (talk(ASK, {**SAY, "loss": False}, ASK, {**SAY, "loss": True}),
             [ASK, {**SAY, "train": False}, ASK, {**SAY, "train": True}]),
    "keys that hold nothing": (say(refusal=None, audio=None, tools=[]), [ASK, SAY]),
    "an empty answer": (say(content=""), [ASK, {**SAY, "content": ""}]),
    "a result of objects with types": (
        talk(ASK, SAY, {"role": "tool", "content": [{"type": "city", "text": "Rome"}]}),
        [ASK, SAY, {"role": "tool", "content": '[{"type": "city", "text": "Rome"}]'}]),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_what_is_read(case: str, tmp_path: Path) -> None:
    row, turns = READ[case]
    assert json.loads(load(tmp_path, "messages", row)["messages"]) == turns
    assert FORMATS["messages"].input_row(row)["messages"] == turns


PROBLEMS: dict[str, tuple[str, dict[str, Any], str]] = {
    "two system turns": ("messages", talk(SYSTEM, ASK, SAY, system="no"),
                         "column 'system' holds 'no', but the conversation begins with the system "
                         "turn 'be'"),
    "a system column of a number": ("messages", talk(ASK, SAY, system=3),
                                    "column 'system' holds 3 (an integer), not text"),
    "thoughts of a number": ("messages", say(thinking=3), "'messages.thinking' holds 3"),
    "thoughts with a picture": ("messages", say(reasoning_content=[{"type": "image"}]),
                                "has reasoning_content with a part that is not text"),
    "a list as the id of a call": ("messages", call(id=[1], name="f"),
                                   "has a call with the id [1]"),
    "a list as the id of a result": (
        "messages", talk(ASK, SAY, {"role": "tool", "content": "3", "tool_call_id": [1]}),
        "turn 3 of column 'messages' has the tool_call_id [1], which is not text"),
    "loss in words": ("messages", say(loss="yes"), "has loss = 'yes'; it is true or false"),
    "loss against train": ("messages", say(loss=False, train=True),
                           "has train = True, but loss = False"),
    **{f"a turn with {key}": ("messages", say(**{key: [1]}),
                               f"turn 2 of column 'messages' has {key}, which is not read")
       for key in ("tools", "functions", "images", "audio", "refusal", "reasoning_details")},
    "an earlier question that is empty": (
        "alpaca", {"instruction": "a", "output": "b", "history": [["", "x"]]},
        "column 'history' has an empty question"),
    "an earlier answer that is empty": (
        "alpaca", {"instruction": "a", "output": "b", "history": [["x", " "]]},
        "column 'history' has an empty answer"),
    "an empty prompt": ("messages", {"prompt": [], "completion": [ASK, SAY]},
                        "column 'prompt' is an empty list"),
    "a role in a list": ("messages", talk({"role": ["user"], "content": "hi"}, SAY),
                         "turn 1 of column 'messages' has the unknown role ['user']"),
    "no content": ("messages", talk(ASK, {"role": "assistant"}),
                   "turn 2 of column 'messages' has no content"),
}  # fmt: skip
HALVES: dict[str, tuple[str, dict[str, Any]]] = {
    "arguments": ("messages", call(name="f", arguments={"a": [HALF]})),
    "a key of arguments": ("messages", call(name="f", arguments={HALF: 1})),
    "thoughts": ("messages", say(reasoning_content=HALF)),
    "the id of a result": (
        "messages", talk(ASK, SAY, {"role": "tool", "content": "3", "tool_call_id": HALF}),
    ),
    "tools": ("messages", talk(ASK, SAY, tools=[{"name": "f", "description": HALF}])),
    "the system column": ("messages", talk(ASK, SAY, system=HALF)),
    "history": ("alpaca", {"instruction": "a", "output": "b", "history": [[HALF, "x"]]}),
    "variables": ("messages", talk(ASK, SAY, chat_template_kwargs={"x": HALF})),
}  # fmt: skip


@pytest.mark.parametrize("case", PROBLEMS)
def test_what_is_a_problem(case: str, tmp_path: Path) -> None:
    name, row, expected = PROBLEMS[case]
    refuse(tmp_path, name, row, expected)


@pytest.mark.parametrize("case", HALVES)
def test_half_a_surrogate_pair_is_a_problem(case: str, tmp_path: Path) -> None:
    refuse(tmp_path, *HALVES[case], "half of a surrogate pair")


def refuse(folder: Path, name: str, row: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError) as refused:
        load(folder, name, row)
    assert str(refused.value).startswith(f"{folder}/train.jsonl:1, ")
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)
    str(refused.value).encode()
    with pytest.raises(DataError):
        FORMATS[name].input_row(row)


@pytest.mark.parametrize("name", ["messages", "sharegpt", "alpaca"])
def test_messages_to_predict_in_runs_of_every_conversation(name: str) -> None:
    form = FORMATS[name]
    for messages in ([ASK], json.dumps([ASK]), [{"from": "human", "value": "hi"}]):
        assert form.input_row({"messages": messages})["messages"] == [ASK]
    for none in ("hi", 3, {"role": "user"}):
        assert form.input_row({"messages": none}) == {"messages": none}
    for bad in ([3], ["hi"], [None], [{}], [{"role": ["user"]}], []):
        with pytest.raises(DataError):
            form.input_row({"messages": bad})


def test_keys_that_no_template_is_given_are_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not those without a value, and no ids."""
    load(tmp_path, "messages", say(toxic=True, language="en", model="", id="x", name="A"))
    said = [message for message in caplog.messages if "no template" in message]
    assert len(said) == 2
    assert all(message.endswith("(2 rows)") for message in said)
    assert "the key 'language'" in said[0]
    assert "the key 'toxic'" in said[1]
