"""Ways to hold conversations wrong: each ends with one readable message and leaves nothing."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import write_checkpoint
from tests.tasks.language.chat.tokenizers import tokenizer_of

pytestmark = pytest.mark.slow

ASK, SAY = {"role": "user", "content": "name"}, {"role": "assistant", "content": "a dog"}


def talk(*turns: Any) -> dict[str, Any]:
    return {"messages": list(turns)}


def turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


LONG = turn("user", "name a dog " * 200)
PAIR = {"prompt": "name", "completion": "a dog"}

BAD: dict[str, tuple[str, list[Any], dict[str, Any], int, str]] = {
    # name: (tokenizer, rows, keys of the task and the data, exit code, what the message must say)
    "unknown role": ("chatml", [talk(ASK, turn("robot", "a"))], {}, 3,
                     "turn 2 of column 'messages' has the unknown role 'robot'"),
    "unknown speaker": ("chatml", [{"conversations": [{"from": "cat", "value": "a"}]}], {}, 3,
                        "unknown from 'cat'"),
    "empty question": ("chatml", [talk(turn("user", " "), SAY)], {}, 3,
                       "turn 1 of column 'messages' is empty"),
    "null turn": ("chatml", [talk(ASK, turn("assistant", None))], {}, 3, "is null"),
    "a turn that is no object": ("chatml", [talk(ASK, "a dog")], {"format": "messages"}, 3,
                                 "turn 2 of column 'messages' is not an object with role and"),
    "no turn": ("chatml", [talk(ASK, SAY), talk()], {}, 3, "17 more: the conversation has no"),
    "the assistant begins": ("chatml", [talk(SAY, ASK, SAY)], {}, 3,
                             "begins with an assistant turn; add a user turn"),
    "the assistant begins behind a system turn": (
        "chatml", [talk(turn("system", "Be brief."), SAY, ASK, SAY)], {}, 3,
        "begins with an assistant turn"),
    "no answer": ("chatml", [talk(ASK, ASK)], {}, 3, "no assistant turn to train on"),
    "a late system turn": ("gemma", [talk(ASK, SAY, turn("system", "Be brief."), ASK, SAY)], {}, 3,
                           "turns of user, assistant, system, user, assistant"),
    "a call that is none": ("chatml", [talk(ASK, turn("assistant", "a", tool_calls=[1]))], {}, 3,
                            "has the call 1, which is not an object"),
    "a call that the template leaves out": (
        "chatml", [talk(ASK, turn("assistant", "a", tool_calls=[
            {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
        ]))], {}, 3, "omits a call of turn 2"),
    "a completion without an answer": (
        "chatml", [{"prompt": [ASK, SAY], "completion": [ASK]}], {}, 3,
        "it has no assistant turn to train on"),
    "a template without system turns": (
        "gemma", [talk(turn("system", "Be brief."), ASK, SAY)], {}, 3,
        "refuses turns of system, user, assistant: System role not supported"),
    "a template that wants turns to alternate": (
        "gemma", [talk(ASK, ASK, SAY)], {}, 3, "Conversation roles must alternate"),
    "a system turn that the template refuses": (
        "gemma", [talk(ASK, SAY)], {"task.system": "Be brief."}, 3, "System role not supported"),
    "no template file": ("chatml", [talk(ASK, SAY)], {"task.chat_template": "no.jinja"}, 2,
                         "task.chat_template: no.jinja cannot be read: No such file"),
    "a template for prompts": ("chatml", [PAIR], {"task.chat_template": "no.jinja"}, 2,
                               "is for conversations (messages, sharegpt, alpaca); these rows"),
    "a system turn for text": ("chatml", [{"text": "a dog"}], {"task.system": "Be brief."}, 2,
                               "task.system is 'Be brief.', which is for conversations"),
    "loss on the assistant of prompts": ("chatml", [PAIR], {"task.loss_on": "assistant"}, 2,
                                         "task.loss_on is 'assistant', which is for conversations"),
    "loss on the completion of text": (
        "chatml", [{"text": "a dog"}], {"task.loss_on": "completion"}, 2,
        "which is for rows with completions; these rows are of the format text"),
    "one stream of conversations": (
        "chatml", [talk(ASK, SAY)], {"task.packing": "wrapped", "packing": True}, 2,
        "task.packing is 'wrapped', which is for plain text"),
    "unknown loss_on": ("chatml", [talk(ASK, SAY)], {"task.loss_on": "user"}, 2, "loss_on"),
    "questions without room for an answer": (
        "chatml", [talk(LONG, SAY)], {"max_length": 64}, 3, "no row has a token to train on"),
    "truncation that is an error": (
        "chatml", [talk(ASK, SAY), talk(LONG, SAY)], {"max_length": 64, "truncation": "error"}, 3,
        "raise data.max_length, or set data.truncation=warn"),
}  # fmt: skip


@pytest.fixture(scope="session")
def speakers(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Random models with the tokenizer of a family."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            write_checkpoint(folder, "llama", "causal", vocab_size=400, max_position_embeddings=256)
            tokenizer_of(family).save_pretrained(folder)
            made[family] = folder
        return made[family]

    return make


def config_of(folder: Path, model: Path, rows: list[Any], told: dict[str, Any]) -> dict[str, Any]:
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for _ in range(20) for row in rows)
    )
    return {
        "model": {"name": str(model)},
        "task": {"name": "causal-lm"}
        | {key[5:]: value for key, value in told.items() if key.startswith("task.")},
        "data": {"source": str(folder / "rows.jsonl"), "splits": {"validation": None}}
        | {key: value for key, value in told.items() if not key.startswith("task.")},
        "method": {"name": "lora", "r": 2},
        "train": {"max_steps": 1, "global_batch_size": 4},
        "eval": {"generation": {"max_new_tokens": 4}},
        "output": {"dir": str(folder / "out" / "run"), "plots": False},
    }


@pytest.mark.parametrize("name", BAD)
def test_bad_conversations_are_explained_and_leave_nothing(
    name: str, tmp_path: Path, speakers: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    from peftlab.cli import main

    family, rows, told, expected, words = BAD[name]
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(config_of(tmp_path, speakers(family), rows, told)))
    before = set(tmp_path.rglob("*"))
    capfd.readouterr()
    code = main(["train", str(file)])
    out, err = capfd.readouterr()
    assert code == expected, err
    assert words in err, err
    assert "Traceback" not in out + err
    assert 0 < len(err.strip().splitlines()) <= 12, err
    assert set(tmp_path.rglob("*")) == before


def test_a_run_that_talks(
    tmp_path: Path,
    speakers: Any,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows, files and conversations line by line; what cannot be asked is said to be so."""
    from peftlab.cli import main

    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(config_of(tmp_path, speakers("chatml"), [talk(ASK, SAY)], {})))
    assert main(["train", str(file)]) == 0
    run = str(tmp_path / "out" / "run")

    def call(*words: str, code: int = 0) -> str:
        capfd.readouterr()
        assert main(["predict", run, *words]) == code
        out, err = capfd.readouterr()
        return err if code else out

    question = tmp_path / "ask.jsonl"
    question.write_text(json.dumps(talk(ASK)) + "\n" + json.dumps(talk(ASK, SAY)) + "\n")
    first, second = json.loads(call("--file", str(question), "--json"))
    (bare,) = json.loads(call("name", "--json"))
    assert first["text"] == second["text"] == bare["text"]
    assert bare["text"].strip() in call("name")
    assert "user: name\nassistant: a dog\n" in call("--file", str(question))
    for bad, words in (
        (talk(SAY), "begins with an assistant turn"),
        (talk(turn("system", "Be brief.")), "the conversation has no turn to answer"),
        (talk(ASK, turn("user", " ")), "turn 2 of column 'messages' is empty"),
        (talk(LONG), "ask.jsonl:1: its last question takes"),
        ({"text": "name"}, "ask.jsonl:1 has no 'messages'"),
        ({"messages": "name"}, "ask.jsonl:1 has no 'messages'"),
    ):
        question.write_text(json.dumps(bad) + "\n")
        assert words in call("--file", str(question), code=3)
    monkeypatch.setattr("sys.stdin", io.StringIO("name\nand a cat\n"))
    assert len(call("-i").splitlines()) >= 2
