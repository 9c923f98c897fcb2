"""Ways to hand one conversation to a template: templates differ in the shapes of fields they take.

Contents are a text or a list of parts; arguments of calls a mapping or JSON text; the role
`developer` is known or is `system`; a call without a text has no content or an empty one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from peftlab.tasks.language.chat.texts import Message


@dataclass(frozen=True, slots=True)
class Variant:
    """One way; the defaults come first."""

    parts: bool = False
    json_arguments: bool = False
    empty_content: bool = True
    developer: bool = True

    def of(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        return [self._message(message) for message in messages]

    def _message(self, message: Message) -> dict[str, Any]:
        built = dict(message)
        content = built.get("content")
        if isinstance(content, list) and not self.parts:
            built["content"] = content = "".join(part["text"] for part in content)
        elif isinstance(content, str) and self.parts:
            built["content"] = [{"type": "text", "text": content}]
        if not content and built.get("tool_calls"):
            if self.empty_content:
                built["content"] = [] if self.parts else ""
            else:
                built.pop("content", None)
        if built["role"] == "developer" and not self.developer:
            built["role"] = "system"
        if self.json_arguments and built.get("tool_calls"):
            built["tool_calls"] = [_json_call(call) for call in built["tool_calls"]]
        return built


def _json_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call["function"])
    if not isinstance(function["arguments"], str):
        function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": function}


def variants_of(messages: Sequence[Message], first: Variant | None = None) -> Iterator[Variant]:
    """The ways in which these messages can be handed over, `first` before all others."""
    calls = [message for message in messages if message.get("tool_calls")]
    bare = any(not message.get("content") for message in calls)
    developer = any(message["role"] == "developer" for message in messages)
    ways = [
        Variant(parts, arguments, empty, known)
        for known, empty, arguments, parts in product(
            (True, False) if developer else (True,),
            (True, False) if bare else (True,),
            (False, True) if calls else (False,),
            (False, True),
        )
    ]
    if first in ways:
        ways.remove(first)
        ways.insert(0, first)
    yield from ways
