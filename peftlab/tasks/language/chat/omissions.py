"""What a template leaves out of a conversation, or shows otherwise: an error, or another row."""

from __future__ import annotations

import json
from dataclasses import replace

from peftlab.tasks.language.chat.conversation import Chat
from peftlab.tasks.language.chat.rendering import Renderer
from peftlab.tasks.language.chat.shown import Shown
from peftlab.tasks.language.chat.template import Unrenderable


class ShownOtherwise(Exception):
    """Each trained turn needs a row of its own: the template renders it alike only as the last."""


def check_shown(renderer: Renderer, shown: Shown, *, prompt: bool) -> None:
    """Raise `Unrenderable` for a text that the template does not render, or changes.

    Thoughts of earlier turns are exempt: in generation the template drops them alike.
    """
    last = len(shown.chat.messages) - 1
    check_tools(shown.chat, shown.text)
    if _tools_are_named(shown):
        bare = renderer.render(replace(shown.chat, tools=()), shown.messages, prompt=prompt)
        if bare == shown.text:
            raise Unrenderable("the chat template does not render the tools of the row")
    for text in shown.lost:
        message = shown.chat.messages[text.message]
        trained = shown.chat.trained[text.message]
        if trained and text.message < last:
            raise ShownOtherwise
        earlier = text.kind == "thought" and message["role"] == "assistant" and text.message < last
        if earlier and not trained:
            continue
        raise Unrenderable(
            f"the chat template omits {_WHAT[text.kind]} of turn {text.message + 1}, of role "
            f"{message['role']!r}, or changes its text"
        )


def check_tools(chat: Chat, text: str) -> None:
    """Raise `Unrenderable` where a conversation's tools are not in its text."""
    names = [_name_of(tool) for tool in chat.tools]
    if any(name and name not in text for name in names):
        raise Unrenderable("the chat template does not render the tools of the row")


def _tools_are_named(shown: Shown) -> bool:
    """Whether the messages name every tool, so that names in the text say nothing of the tools."""
    said = json.dumps(shown.messages, ensure_ascii=False, default=str)
    return bool(shown.chat.tools) and all(_name_of(tool) in said for tool in shown.chat.tools)


_WHAT = {
    "content": "the content",
    "thought": "the thought",
    "tool": "a call",
    "argument": "an argument",
}


def _name_of(tool: object) -> str:
    if not isinstance(tool, dict):
        return ""
    function = tool.get("function", tool)
    return str(function.get("name", "")) if isinstance(function, dict) else ""
