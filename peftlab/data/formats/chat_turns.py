"""Turns of conversations as messages: their roles, texts, thoughts, calls and weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from peftlab.data.formats.cells import Cells, parsed, text_problem

Message = dict[str, Any]

ROLES = {
    "system": "system", "developer": "developer", "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant",
    "bard": "assistant", "model": "assistant", "bot": "assistant", "ai": "assistant",
    "function_call": "assistant", "tool_call": "assistant", "tool": "tool", "observation": "tool",
    "function": "tool", "function_response": "tool", "tool_response": "tool", "ipython": "tool",
}  # fmt: skip
_CALLS = ("function_call", "tool_call")
_ARGUMENTS = ("arguments", "parameters", "input")
_THOUGHTS = ("reasoning_content", "thinking", "reasoning")
_UNREAD: dict[str, str] = {
    **dict.fromkeys(("tools", "functions"), "the tools on offer belong in the row's column tools"),
    **dict.fromkeys(("images", "audio"), "only text is read; take it out, or leave the row out"),
    "refusal": "write a refusal as the turn's content",
    "reasoning_details": "write thoughts as text in reasoning_content",
}
"""Keys of a turn that mean something, and what to do with them instead."""
_PARTS = frozenset({
    "text", "input_text", "output_text", "image", "image_url", "input_image", "audio", "audio_url",
    "input_audio", "video", "video_url",
})  # fmt: skip
_READ = frozenset({
    "role", "from", "content", "value", "name", "tool_call_id", "tool_calls", "weight", "train",
    "loss", *_CALLS, *_THOUGHTS,
})  # fmt: skip
_NOTHING_TO_SAY = frozenset({"id"})
_MAY_BE_EMPTY = ("assistant", "tool", "system", "developer")


def own_keys(cells: Cells, value: Any) -> Any:
    """A value with the keys that its row gave it: Arrow's objects have the keys of all rows."""
    return value if cells.own_keys else without_nulls(value)


def without_nulls(value: Any) -> Any:
    """Without keys that have no value."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def _given(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if item is not None}


def turns_of(cells: Cells, role: str) -> list[Message]:
    """The turns of one column as messages; malformed turns are problems.

    Each is an object of `role` and `content`, or of `from` and `value`.
    """
    value = parsed(cells.values.get(role))
    turns = value if isinstance(value, list) else cells.listed(role)
    messages: list[Message] = []
    for number, turn in enumerate(turns, start=1):
        here = f"turn {number} of column {cells.column(role)!r}"
        message = _message(cells, turn, here, f"{cells.column(role)}", role)
        if message is None:
            return []
        messages.append(message)
    return messages


def _message(cells: Cells, turn: Any, here: str, column: str, role: str) -> Message | None:
    speaker, said = ("from", "value") if role == "conversations" else ("role", "content")
    if isinstance(turn, Mapping) and speaker not in turn:
        speaker, said = ("role", "content") if speaker == "from" else ("from", "value")
    for key, instead in _UNREAD.items() if isinstance(turn, Mapping) else ():
        if turn.get(key):
            cells.wrong(f"{here} has {key}, which is not read: {instead}")
            return None
    calls = isinstance(turn, Mapping) and any(turn.get(key) for key in ("tool_calls", *_CALLS))
    thinks = isinstance(turn, Mapping) and any(turn.get(key) for key in _THOUGHTS)
    if not isinstance(turn, Mapping) or speaker not in turn:
        speaker, said = ("from", "value") if role == "conversations" else ("role", "content")
        cells.wrong(f"{here} is not an object with {speaker} and {said}")
        return None
    if not (said in turn or calls or thinks):
        cells.wrong(f"{here} has no {said}")
        return None
    turn = _given(turn)
    for key in turn.keys() - _READ - _NOTHING_TO_SAY:
        if turn[key] not in ("", [], {}):
            here_of_all = f"turns of column {cells.column(role)!r}"
            cells.note(f"{here_of_all} have the key {key!r:.40}, which no template is given")
    who = turn.get(speaker)
    if not isinstance(who, str) or who not in ROLES:
        cells.wrong(f"{here} has the unknown {speaker} {who!r:.40}; known are {', '.join(ROLES)}")
        return None
    message: Message = {"role": ROLES[who]}
    problem = (
        _add_call(cells, message, turn.get(said))
        if who in _CALLS
        else _add_content(message, turn.get(said), said, f"{column}.{said}", bare=calls or thinks)
    )
    problem = (
        problem
        or _add_calls(cells, message, turn)
        or _add_weights(message, turn)
        or _add_thoughts(message, turn, column)
        or _add_names(message, turn)
    )
    if problem is not None:
        cells.wrong(f"{here}{problem}" if problem.startswith(":") else f"{here} {problem}")
        return None
    return message


def _add_thoughts(message: Message, turn: Mapping[str, Any], column: str) -> str | None:
    """Thoughts, as text or as a list of parts of text."""
    for key in _THOUGHTS:
        if (thought := turn.get(key)) is None:
            continue
        if isinstance(thought, list):
            parts: list[Any] = [p.get("text") if isinstance(p, Mapping) else p for p in thought]
            if not all(isinstance(part, str) for part in parts):
                return f"has {key} with a part that is not text; only text is read"
            thought = "".join(parts)
        what = text_problem(thought, key, f"{column}.{key}", may_be_empty=True)
        if what is not None:
            return f": {what}"
        if thought.strip():
            message[key] = thought
    return None


def _add_names(message: Message, turn: Mapping[str, Any]) -> str | None:
    for key in ("name", "tool_call_id"):
        if (name := _named(turn.get(key))) is None:
            return f"has the {key} {turn[key]!r:.40}, which is not text or an integer"
        if name.strip():
            message[key] = name
    return None


def _named(value: Any) -> str | None:
    """A name or number as text, empty where there is none; None for another value."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return "" if value is None else value if isinstance(value, str) else None


def _add_content(
    message: Message, content: Any, said: str, where: str, *, bare: bool
) -> str | None:
    """`bare`: the turn may have no content, as it has a call or a thought."""
    if content is None and bare:
        if "content" not in message:
            message["content"] = ""
        return None
    if message["role"] == "tool" and (
        isinstance(content, Mapping)
        or (isinstance(content, list) and not all(_is_part(part) for part in content))
        or (isinstance(content, bool | int | float))
    ):
        content = json.dumps(content, ensure_ascii=False, default=str)
    if isinstance(content, list):
        parts = [{"type": "text", "text": p} if isinstance(p, str) else p for p in content]
        for part in parts:
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            if kind not in ("text", None) or not isinstance(part.get("text"), str):
                return f"has a part of the type {kind!r:.40}; only parts of text are read"
        message["content"] = [{"type": "text", "text": part["text"]} for part in parts]
        text = "".join(part["text"] for part in parts)
    else:
        message["content"] = text = content
    may_be_empty = bare or message["role"] in _MAY_BE_EMPTY
    if (what := text_problem(text, said, where, may_be_empty=may_be_empty)) is not None:
        return "is empty" if isinstance(text, str) and not text.strip() else f": {what}"
    return None


def _is_part(part: Any) -> bool:
    if not isinstance(part, Mapping):
        return isinstance(part, str)
    return isinstance(part.get("type"), str) and part["type"] in _PARTS


def _add_call(cells: Cells, message: Message, value: Any) -> str | None:
    """A turn that is a call, or several, as JSON."""
    calls = parsed(value)
    calls = calls if isinstance(calls, list) else [calls]
    message["content"] = ""
    return _set_calls(cells, message, calls)


def _add_calls(cells: Cells, message: Message, turn: Mapping[str, Any]) -> str | None:
    calls = parsed(turn.get("tool_calls"))
    if not calls:
        calls = [turn[key] for key in _CALLS if turn.get(key)]
    if not calls:
        return None
    if message["role"] != "assistant":
        return f"has calls, but the role {message['role']!r}"
    return _set_calls(cells, message, calls if isinstance(calls, list) else [calls])


def _set_calls(cells: Cells, message: Message, calls: list[Any]) -> str | None:
    """Calls as `{id, type, function: {name, arguments}}`, arguments as an object."""
    made = []
    for given in calls:
        call = parsed(given)
        if not isinstance(call, Mapping):
            return f"has the call {given!r:.40}, which is not an object"
        function = parsed(call.get("function") or call)
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not name.strip():
            return "has a call without a name"
        given_arguments = next(
            (function[k] for k in _ARGUMENTS if function.get(k) is not None), None
        )  # fmt: skip
        arguments = parsed(given_arguments) if given_arguments not in ("", None) else {}
        if arguments is given_arguments:
            arguments = own_keys(cells, arguments)
        if not isinstance(arguments, Mapping):
            return f"has a call of {name!r:.40} whose arguments are not an object in JSON"
        if (identity := _named(call.get("id"))) is None:
            return f"has a call with the id {call['id']!r:.40}, which is not text or an integer"
        kept = {"id": identity} if call.get("id") is not None else {}
        made.append(
            {**kept, "type": "function", "function": {"name": name, "arguments": dict(arguments)}}
        )
    message["tool_calls"] = made
    return None


def _add_weights(message: Message, turn: Mapping[str, Any]) -> str | None:
    """`weight` of 0 or 1, and `train` or `loss`: whether an answer is trained."""
    weight = turn.get("weight")
    if weight is not None:
        if weight not in (0, 1):
            return f"has the weight {weight!r:.40}; weights are 0 and 1"
        message["weight"] = int(weight)
    for key in ("train", "loss"):
        if (trained := turn.get(key)) is None:
            continue
        if not isinstance(trained, bool):
            return f"has {key} = {trained!r:.40}; it is true or false"
        if message.setdefault("train", trained) != trained:
            return f"has train = {message['train']}, but loss = {trained}; give one of them"
    return None
