"""messages, sharegpt and alpaca: conversations, all converted to messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from peftlab.data.formats.cells import Cells, Kind, text_problem
from peftlab.data.formats.row_format import Row, RowFormat, by_usual_name

_SPEAKERS = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant",
    "assistant": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "tool": "tool", "observation": "tool",
}  # fmt: skip
_ROLES = ("system", "user", "assistant", "tool")


class Messages(RowFormat):
    """`messages`: a list of `{role, content}`; or `prompt` and `completion`, two such lists.

    `prompt_messages` is the number of messages of the prompt; 0 where rows have one list.
    """

    name: ClassVar[str] = "messages"
    roles: ClassVar[Mapping[str, bool]] = {"messages": False, "prompt": False, "completion": False}
    usual: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "messages": ("messages", "conversation", "conversations", "dialog", "chat"),
        "prompt": ("prompt",),
        "completion": ("completion",),
    }
    targets: ClassVar[frozenset[str]] = frozenset({"completion"})
    gives: ClassVar[Mapping[str, Kind]] = {"messages": "messages", "prompt_messages": "count"}

    def find(
        self, available: Sequence[str], explicit: Mapping[str, str], where: str
    ) -> dict[str, str]:
        if explicit.keys() & {"prompt", "completion"}:
            named = {role: self.usual[role] for role in ("prompt", "completion")}
        elif by_usual_name(self.usual["messages"], available, []) or "messages" in explicit:
            named = {"messages": self.usual["messages"]}
        else:
            named = {role: self.usual[role] for role in ("prompt", "completion")}
        columns = dict(explicit)
        for role, names in named.items():
            matches = by_usual_name(names, available, list(columns.values()))
            if role not in columns and matches:
                columns[role] = matches[0]
        return columns

    def lacking(self, columns: Mapping[str, str]) -> str | None:
        if "messages" in columns:
            return None
        both = [role for role in ("prompt", "completion") if role in columns]
        if not both:
            return "messages"
        return None if len(both) == 2 else ({"prompt", "completion"} - set(both)).pop()

    def fits(self, first: Mapping[str, Any]) -> bool:
        turns = first.get("messages", first.get("prompt"))
        if isinstance(turns, str):
            return turns.lstrip()[:1] == "[" and '"role"' in turns
        return isinstance(turns, list) and all(
            isinstance(turn, Mapping) and "role" in turn for turn in turns
        )

    def read(self, cells: Cells) -> Row:
        if cells.has("messages") or not cells.has("prompt"):
            return _row(cells, _turns(cells, "messages", "role", "content"), 0)
        prompt = _turns(cells, "prompt", "role", "content")
        completion: list[dict[str, str]] = []
        if not cells.to_predict or cells.has("completion"):
            completion = _turns(cells, "completion", "role", "content")
        return _row(cells, [*prompt, *completion], len(prompt))

    def input_row(self, row: Mapping[str, Any]) -> Row:
        given = row.get("messages", row.get("prompt"))
        return super().input_row(row) if isinstance(given, list) else dict(row)


class ShareGPT(RowFormat):
    """`conversations`: a list of `{from, value}`, from human, gpt and system."""

    name: ClassVar[str] = "sharegpt"
    roles: ClassVar[Mapping[str, bool]] = {"conversations": True}
    usual: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "conversations": ("conversations", "conversation", "dialog", "messages"),
    }
    gives: ClassVar[Mapping[str, Kind]] = {"messages": "messages", "prompt_messages": "count"}

    def fits(self, first: Mapping[str, Any]) -> bool:
        turns = first.get("conversations")
        if isinstance(turns, str):
            return turns.lstrip()[:1] == "[" and '"from"' in turns
        return isinstance(turns, list) and all(
            isinstance(turn, Mapping) and "from" in turn for turn in turns
        )

    def read(self, cells: Cells) -> Row:
        return _row(cells, _turns(cells, "conversations", "from", "value"), 0)


class Alpaca(RowFormat):
    """`instruction`, `input` below it where it is not empty, and `output`."""

    name: ClassVar[str] = "alpaca"
    roles: ClassVar[Mapping[str, bool]] = {"instruction": True, "input": False, "output": True}
    usual: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "instruction": ("instruction",), "input": ("input", "context"),
        "output": ("output", "response"),
    }  # fmt: skip
    targets: ClassVar[frozenset[str]] = frozenset({"output"})
    gives: ClassVar[Mapping[str, Kind]] = {"messages": "messages", "prompt_messages": "count"}

    def read(self, cells: Cells) -> Row:
        content = cells.text("instruction")
        if cells.has("input") and (more := cells.text("input", may_be_empty=True)).strip():
            content = f"{content}\n\n{more}"
        turns = [{"role": "user", "content": content}]
        if not cells.to_predict or cells.has("output"):
            turns.append({"role": "assistant", "content": cells.text("output")})
        return {"messages": turns, "prompt_messages": 1}


def _turns(cells: Cells, role: str, speaker: str, content: str) -> list[dict[str, str]]:
    """The turns of one column as messages; malformed turns are problems."""
    column = cells.column(role)
    turns: list[dict[str, str]] = []
    names = _ROLES if speaker == "role" else tuple(_SPEAKERS)
    for number, turn in enumerate(cells.listed(role), start=1):
        here = f"turn {number} of column {column!r}"
        if not isinstance(turn, Mapping) or speaker not in turn or content not in turn:
            cells.wrong(f"{here} is not an object with {speaker} and {content}")
            return []
        who = turn[speaker]
        if who not in names:
            cells.wrong(f"{here} has the unknown {speaker} {who!r:.40}; known are "
                        f"{', '.join(names)}")  # fmt: skip
            return []
        extra = [key for key in ("tool_calls", "function_call") if turn.get(key)]
        if extra:
            cells.wrong(f"{here} has {extra[0]}, which is not supported")
            return []
        if (what := text_problem(turn[content], content, f"{column}.{content}")) is not None:
            empty = isinstance(turn[content], str) and not turn[content].strip()
            cells.wrong(f"{here} is empty" if empty else f"{here}: {what}")
            return []
        turns.append({"role": _SPEAKERS[who], "content": turn[content]})
    return turns


def _row(cells: Cells, turns: list[dict[str, str]], prompt: int) -> Row:
    if not cells.problems:
        if not turns:
            cells.wrong("the conversation has no turn")
        elif next((turn["role"] for turn in turns if turn["role"] != "system"), "") == "assistant":
            cells.wrong("the conversation begins with an assistant turn; add a user turn before "
                        "it, or leave it out")  # fmt: skip
        elif any(turn["role"] == "system" for turn in turns[1:]):
            cells.wrong("a system turn follows the first turn")
        elif not cells.to_predict and all(turn["role"] != "assistant" for turn in turns):
            cells.wrong("the conversation has no assistant turn to train on")
    return {"messages": turns, "prompt_messages": prompt}
