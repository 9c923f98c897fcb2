"""The texts of a conversation, each marked so that a template shows where it puts them.

A text is what a person or a model said: the content of a message or of one of its parts, a thought,
the name of a called tool, an argument. Marks stand inside a text's outer white space and inside
thought tags, so that a template which strips or splits texts treats marked ones alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from peftlab.tasks.language.chat.template import Unrenderable

Message = Mapping[str, Any]
"""`role`, `content` (a text or parts), and what else templates read: `tool_calls`, `name`, ..."""

THOUGHTS = ("reasoning_content", "thinking", "reasoning")
THOUGHT_TAGS = (
    "<think>", "</think>", "<thinking>", "</thinking>", "<thought>", "</thought>", "[THINK]",
    "[/THINK]", "<|START_THINKING|>", "<|END_THINKING|>",
)  # fmt: skip
_OPENING = tuple(tag for tag in THOUGHT_TAGS if "/" not in tag and "END" not in tag)
_TAGS = re.compile("|".join(map(re.escape, THOUGHT_TAGS)))
# How models write the end of a thought whose beginning stood in the prompt.
_CLOSED_ONLY = re.compile(r"</think>\s*?\n")

Kind = Literal["content", "thought", "tool", "argument"]
Put = Callable[["Text"], str]


@dataclass(frozen=True, slots=True)
class Text:
    """A text without its outer white space. `whole` numbers the field that it is a piece of."""

    message: int
    kind: Kind
    core: str
    whole: int


class Walk:
    """Rebuilds messages with every text put anew; afterwards `texts` lists them.

    `inner` also cuts texts at what it matches: constants that the template looks for in texts.
    `values` are the arguments that are no texts: by message, as they are.
    """

    def __init__(self, put: Put, inner: re.Pattern[str] | None = None) -> None:
        self._put, self._inner = put, inner
        self.texts: list[Text] = []
        self.values: list[tuple[int, Any]] = []
        self._wholes = 0

    def messages(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        return [self._message(number, message) for number, message in enumerate(messages)]

    def _message(self, number: int, message: Message) -> dict[str, Any]:
        built = dict(message)
        for key in THOUGHTS:
            if isinstance(message.get(key), str):
                built[key] = self._field(number, "thought", message[key])
        content = message.get("content")
        answers = message.get("role") == "assistant"
        if isinstance(content, str):
            built["content"] = self._content(number, content, answers)
        elif isinstance(content, list):
            built["content"] = [
                {**part, "text": self._content(number, part["text"], answers)}
                if isinstance(part, Mapping) and isinstance(part.get("text"), str)
                else part
                for part in content
            ]
        if message.get("tool_calls"):
            built["tool_calls"] = [self._call(number, call) for call in message["tool_calls"]]
        return built

    def _call(self, number: int, call: Mapping[str, Any]) -> dict[str, Any]:
        function = dict(call["function"])
        function["name"] = self._field(number, "tool", function["name"])
        function["arguments"] = self._arguments(number, function.get("arguments"))
        return {**call, "function": function}

    def _arguments(self, number: int, value: Any) -> Any:
        if isinstance(value, str):
            return self._field(number, "argument", value)
        if isinstance(value, Mapping):
            return {key: self._arguments(number, item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._arguments(number, item) for item in value]
        if value is not None:
            self.values.append((number, value))
        return value

    def _content(self, number: int, content: str, answers: bool) -> str:
        """Thoughts in an answer are texts of their own."""
        begun = content.lstrip().startswith(_OPENING)
        if not answers or not (begun or _CLOSED_ONLY.search(content)):
            return self._field(number, "content", content)
        built, at, inside = "", 0, not begun
        for tag in _TAGS.finditer(content):
            inside = tag[0] not in _OPENING
            built += self._field(
                number, "thought" if inside else "content", content[at : tag.start()]
            )
            built += tag[0]
            at = tag.end()
        return built + self._field(number, "content", content[at:])

    def _field(self, number: int, kind: Kind, text: str) -> str:
        self._wholes += 1
        if self._inner is None:
            return self._piece(number, kind, text)
        built, at = "", 0
        for found in self._inner.finditer(text):
            built += self._piece(number, kind, text[at : found.start()]) + found[0]
            at = found.end()
        return built + self._piece(number, kind, text[at:])

    def _piece(self, number: int, kind: Kind, text: str) -> str:
        core = text.strip()
        if not core:
            return text
        start = text.index(core)
        piece = Text(number, kind, core, self._wholes)
        self.texts.append(piece)
        return text[:start] + self._put(piece) + text[start + len(core) :]


class Marks:
    """A pair of characters for each text: letters of a rare script, which no filter changes."""

    _FIRST, _LAST, _STEP = 0x20000, 0x2A000, 0x2000
    """Printable, without case, equal under every Unicode normal form."""

    def __init__(self, messages: Sequence[Message], rendered: str) -> None:
        used = {*rendered}
        Walk(lambda text: used.update(text.core) or "").messages(messages)  # type: ignore[func-returns-value]
        taken = {ord(char) for char in used if self._FIRST <= ord(char) <= self._LAST}
        bases = range(self._FIRST, self._LAST, self._STEP)
        free = (b for b in bases if not any(b <= t < b + self._STEP for t in taken))
        base = next(free, None)
        if base is None:
            raise Unrenderable("it has rare letters of every block from U+20000 to U+29FFF")
        self._base = base
        self._count = 0
        self._found = re.compile(f"[{chr(self._base)}-{chr(self._base + self._STEP - 1)}]")

    def put(self, text: Text) -> str:
        if self._count >= self._STEP // 2:
            raise Unrenderable(f"it has more than {self._STEP // 2:,} texts")
        mark = self._base + 2 * self._count
        self._count += 1
        return f"{chr(mark)}{text.core}{chr(mark + 1)}"

    def read(self, marked: str) -> tuple[str, list[tuple[int, int, int]]]:
        """The text without marks, and `(number of the text, start, end)` in it, in order.

        A text of which one mark alone is left has the end -1.
        """
        parts: list[str] = []
        slots: list[tuple[int, int, int]] = []
        opened: dict[int, int] = {}
        at = length = 0
        for mark in self._found.finditer(marked):
            part = marked[at : mark.start()]
            parts.append(part)
            length += len(part)
            at = mark.end()
            number, closes = divmod(ord(mark[0]) - self._base, 2)
            if not closes:
                opened[number] = length
            elif number in opened:
                slots.append((number, opened.pop(number), length))
            else:
                slots.append((number, length, -1))
        slots += [(number, start, -1) for number, start in opened.items()]
        parts.append(marked[at:])
        return "".join(parts), sorted(slots, key=lambda slot: slot[1])
