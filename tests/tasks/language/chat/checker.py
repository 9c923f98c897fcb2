"""Checks trained rows against the conversation alone; shares no code with what made them.

The tokenizers of these tests turn every byte into a token, so ids are read back exactly here.
"""

from __future__ import annotations

import json
from typing import Any

from tests.tasks.language.chat.forms import Row


def _texts(message: Row) -> list[str]:
    """The texts of a message, field by field."""
    content = message.get("content") or ""
    if isinstance(content, list):
        content = "".join(part["text"] for part in content)
    if message["role"] == "assistant" and content.startswith("<think>"):
        found = content.removeprefix("<think>").split("</think>")
    else:
        found = [content]
    found += [message[key] for key in ("reasoning_content", "thinking") if key in message]
    for call in message.get("tool_calls", []):
        found += [call["function"]["name"], *call["function"]["arguments"].values()]
    return [text.strip() for text in found if text.strip()]


def _read(tokenizer: Any, ids: list[int]) -> str:
    """Bytes and marks as text."""
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _runs(labels: list[int]) -> list[tuple[int, int]]:
    runs, start = [], None
    for at, label in enumerate([*labels, -100]):
        if label != -100 and start is None:
            start = at
        elif label == -100 and start is not None:
            runs.append((start, at))
            start = None
    return runs


def violations(tokenizer: Any, row: Row, encoded: list[Row], headers: set[str]) -> list[str]:
    """What is wrong with the encoded rows of one conversation. `headers`: marks that begin turns.

    Runs of trained tokens are matched with trained turns in their order; two turns may make one
    run where the template writes nothing between them.
    """
    wrong: list[str] = []
    messages = row["messages"]
    trained = [m for m in messages if m["role"] == "assistant"]
    runs = []
    for one in encoded:
        ids, labels = list(one["input_ids"]), list(one["labels"])
        for token, label in zip(ids, labels, strict=True):
            if label not in (-100, token):
                wrong.append(f"label {label} at token {token}")
        spans = _runs(labels)
        if not spans:
            wrong.append("a row trains nothing")
        if spans and spans[-1][1] != len(ids):
            wrong.append("a row goes on after its last trained token")
        text = _read(tokenizer, ids)
        again = tokenizer(text, add_special_tokens=False)["input_ids"]
        if list(again) != ids:
            wrong.append("the ids are not those of the whole text")
        runs += [_read(tokenizer, ids[a:b]) for a, b in spans]
    if len(runs) < len(trained):
        trained = _joined(messages)
    if len(runs) != len(trained):
        return [*wrong, f"{len(runs)} runs for {len(trained)} trained turns: {runs}"]
    others = [m for m in messages if m["role"] != "assistant"]
    for turn, run in zip(trained, runs, strict=True):
        wrong += _of_turn(tokenizer, turn, run, headers)
        own = " ".join(_texts(turn))
        for other in [*others, *(m for m in messages if m["role"] == "assistant")]:
            wrong += [
                f"{text!r} of another turn is trained in {run!r}"
                for text in _texts(other)
                if text not in own and text in run and len(text) > 8
            ]
    return wrong


def _joined(messages: list[Row]) -> list[Row]:
    """Answers in a row as one, for templates that write nothing between them."""
    joined: list[Row] = []
    for before, message in zip([{"role": ""}, *messages], messages, strict=False):
        if message["role"] == "assistant" and before["role"] == "assistant":
            joined[-1] = {
                **message,
                "content": joined[-1]["content"],
                "thinking": message["content"],
            }
        elif message["role"] == "assistant":
            joined.append(message)
    return joined


def _of_turn(tokenizer: Any, turn: Row, run: str, headers: set[str]) -> list[str]:
    wrong = []
    fields = _texts(turn)
    at = 0
    for text in fields:
        forms = (text, json.dumps(text, ensure_ascii=False)[1:-1])
        places = [run.find(form) for form in forms if form in run]
        if not places:
            wrong.append(f"{text!r} is not trained in {run!r}")
        at = max([at, *places])
    spoken = run
    for text in sorted(fields, key=len, reverse=True):
        spoken = spoken.replace(text, "\0")
    ends = [str(token) for token in tokenizer.get_added_vocab() if "think" not in token]
    ends.append(tokenizer.eos_token)
    if not any(run.endswith(mark) for mark in ends):
        wrong.append(f"{run!r} ends without an end token")
    lead = spoken.split("\0")[0]
    # Some templates end a turn with the mark that begins the next one: it is the end token then.
    tail = next((spoken.removesuffix(m) for m in headers if spoken.endswith(m)), spoken)
    tail = tail.rsplit("\0", 1)[-1]
    if not fields:
        lead = tail
    wrong += [f"the header {mark!r} is trained in {run!r}" for mark in headers if mark in lead]
    wrong += [
        f"the header {mark!r} is trained after {run!r}"
        for mark in headers
        if fields and mark in tail
    ]
    return wrong
