"""messages, sharegpt and alpaca: conversations, all converted to messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from peftlab.data.formats.cells import Cells, Kind, json_problem, parsed, text_problem
from peftlab.data.formats.chat_context import tools_of, variables_of
from peftlab.data.formats.chat_turns import Message, turns_of
from peftlab.data.formats.row_format import Row, RowFormat, by_usual_name

_GIVES: dict[str, Kind] = {
    "messages": "json", "prompt_messages": "count", "tools": "json", "chat_template_kwargs": "json",
}  # fmt: skip
_BESIDE: dict[str, tuple[str, ...]] = {
    "system": ("system", "system_prompt"),
    "tools": ("tools", "functions"),
    "chat_template_kwargs": ("chat_template_kwargs",),
}
"""Columns that conversations may have beside them."""
_UNREAD: dict[str, str] = {
    "rejected": "answers that are to be avoided are not trained on",
    "chosen": "answers are read from the conversation alone",
    **dict.fromkeys(
        ("reasoning", "thinking", "reasoning_content", "thoughts"),
        "thoughts are read from reasoning_content of a message, or from its content",
    ),
    **dict.fromkeys(("images", "image", "videos", "audios"), "only text is read"),
}


class Messages(RowFormat):
    """`messages`: a list of `{role, content}`; or `prompt` and `completion`, two such lists.

    `prompt_messages` is the number of messages of the prompt; 0 where rows have one list.
    """

    name: ClassVar[str] = "messages"
    tasks: ClassVar[tuple[str, ...]] = ("causal-lm",)
    roles: ClassVar[Mapping[str, bool]] = {
        "messages": False, "prompt": False, "completion": False, **dict.fromkeys(_BESIDE, False),
    }  # fmt: skip
    usual: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "messages": ("messages", "conversation", "conversations", "dialog", "chat"),
        "prompt": ("prompt",),
        "completion": ("completion",),
        **_BESIDE,
    }
    targets: ClassVar[frozenset[str]] = frozenset({"completion"})
    gives: ClassVar[Mapping[str, Kind]] = _GIVES
    unread: ClassVar[Mapping[str, str]] = _UNREAD

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
        for role, names in {**named, **_BESIDE}.items():
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
        return _is_list_with("role", first.get("messages", first.get("prompt")))

    def read(self, cells: Cells) -> Row:
        if cells.has("messages") or not cells.has("prompt"):
            return _row(cells, turns_of(cells, "messages"), 0)
        prompt = turns_of(cells, "prompt")
        if not prompt and not cells.problems:
            cells.wrong(f"column {cells.column('prompt')!r} is an empty list; give it a user turn, "
                        "or leave the row out")  # fmt: skip
        completion: list[Message] = []
        if not cells.to_predict or cells.has("completion"):
            completion = turns_of(cells, "completion")
        return _row(cells, [*prompt, *completion], len(prompt))

    def input_row(self, row: Mapping[str, Any]) -> Row:
        given = row.get("prompt") if row.get("messages") is None else row["messages"]
        # The task refuses what is no list.
        return super().input_row(row) if isinstance(parsed(given), list) else dict(row)


class ShareGPT(RowFormat):
    """`conversations`: a list of `{from, value}`, from human, gpt, system, observation, ..."""

    name: ClassVar[str] = "sharegpt"
    tasks: ClassVar[tuple[str, ...]] = ("causal-lm",)
    roles: ClassVar[Mapping[str, bool]] = {"conversations": True, **dict.fromkeys(_BESIDE, False)}
    usual: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "conversations": ("conversations", "conversation", "dialog", "messages"), **_BESIDE,
    }  # fmt: skip
    gives: ClassVar[Mapping[str, Kind]] = _GIVES
    unread: ClassVar[Mapping[str, str]] = _UNREAD

    def fits(self, first: Mapping[str, Any]) -> bool:
        return _is_list_with("from", first.get("conversations"))

    def read(self, cells: Cells) -> Row:
        return _row(cells, turns_of(cells, "conversations"), 0)

    def input_row(self, row: Mapping[str, Any]) -> Row:
        """Also a row of `messages`."""
        own = row.get("conversations") is not None
        return super().input_row(row) if own else Messages().input_row(row)


class Alpaca(RowFormat):
    """`instruction`, `input` below it where it is not empty, and `output`.

    `history` is a list of earlier questions, each with its answer.
    """

    name: ClassVar[str] = "alpaca"
    tasks: ClassVar[tuple[str, ...]] = ("causal-lm",)
    roles: ClassVar[Mapping[str, bool]] = {
        "instruction": True, "input": False, "output": True, "history": False,
        **dict.fromkeys(_BESIDE, False),
    }  # fmt: skip
    usual: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "instruction": ("instruction",), "input": ("input", "context"),
        "output": ("output", "response"), "history": ("history",), **_BESIDE,
    }  # fmt: skip
    targets: ClassVar[frozenset[str]] = frozenset({"output"})
    gives: ClassVar[Mapping[str, Kind]] = _GIVES
    unread: ClassVar[Mapping[str, str]] = _UNREAD

    def read(self, cells: Cells) -> Row:
        content = cells.text("instruction")
        if cells.has("input") and (more := cells.text("input", may_be_empty=True)).strip():
            content = f"{content}\n\n{more}"
        turns = [*_history(cells), {"role": "user", "content": content}]
        prompt = len(turns)
        if not cells.to_predict or cells.has("output"):
            turns.append({"role": "assistant", "content": cells.text("output")})
        return _row(cells, turns, prompt)

    def input_row(self, row: Mapping[str, Any]) -> Row:
        """Also a row of `messages`."""
        own = row.get("instruction") is not None
        return super().input_row(row) if own else Messages().input_row(row)


def _is_list_with(key: str, turns: Any) -> bool:
    turns = parsed(turns)
    return isinstance(turns, list) and all(
        isinstance(turn, Mapping) and key in turn for turn in turns
    )


def _history(cells: Cells) -> list[Message]:
    pairs = parsed(cells.values.get("history"))
    if not pairs:
        return []
    turns: list[Message] = []
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        texts = isinstance(pair, list) and len(pair) == 2 and all(isinstance(t, str) for t in pair)
        if not texts:
            cells.wrong(f"column {cells.column('history')!r} holds {pair!r:.40}, not a question "
                        "with its answer")  # fmt: skip
            return []
        for text, what in zip(pair, ("question", "answer"), strict=True):
            if not text.strip():
                cells.wrong(f"column {cells.column('history')!r} has an empty {what}; fill it, or "
                            "leave the pair out")  # fmt: skip
                return []
        turns += [
            {"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]},
        ]  # fmt: skip
    return turns


def _with_system(cells: Cells, turns: list[Message]) -> list[Message]:
    """The turns with the system column as the first, where it has text."""
    system, column = cells.values.get("system"), cells.column("system")
    if system is None:
        return turns
    what = text_problem(system, "system turn", column, may_be_empty=True)
    if what is not None:
        cells.wrong(what)
        return turns
    if not system.strip() or not turns:
        return turns
    if turns[0]["role"] != "system":
        return [{"role": "system", "content": system}, *turns]
    content = turns[0]["content"]
    own = content if isinstance(content, str) else "".join(part["text"] for part in content)
    if not own.strip():
        return [{**turns[0], "content": system}, *turns[1:]]
    if own.strip() != system.strip():
        cells.wrong(f"column {column!r} holds {system!r:.40}, but the conversation begins with the "
                    f"system turn {own!r:.40}; leave one of them out")  # fmt: skip
    return turns


def _row(cells: Cells, turns: list[Message], prompt: int) -> Row:
    if not cells.problems:
        given = len(turns)
        turns = _with_system(cells, turns)
        prompt += len(turns) - given if prompt else 0
        opening = next(
            (t["role"] for t in turns if t["role"] not in ("system", "developer")), ""
        )  # fmt: skip
        if not turns:
            cells.wrong("the conversation has no turn")
        elif opening == "assistant":
            cells.wrong("the conversation begins with an assistant turn; add a user turn before "
                        "it, or leave it out")  # fmt: skip
        elif not cells.to_predict and all(turn["role"] != "assistant" for turn in turns):
            cells.wrong("the conversation has no assistant turn to train on")
    row: Row = {"messages": turns, "prompt_messages": prompt}
    if "tools" in cells.columns:
        row["tools"] = tools_of(cells)
    if "chat_template_kwargs" in cells.columns:
        row["chat_template_kwargs"] = variables_of(cells)
    for name, value in row.items() if not cells.problems else ():
        where = "a turn" if name == "messages" else f"column {cells.column(name)!r}"
        if (what := json_problem(value, where)) is not None:
            cells.wrong(what)
    return row
