"""Where a template puts each text of a conversation, learnt by rendering it with marked texts.

Conversations of one shape, equal but for their texts, are rendered by the same parts of a template:
where the first of them is known, another takes one render, which is compared with what the first
lets expect.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from peftlab.tasks.language.chat.conversation import Chat
from peftlab.tasks.language.chat.rendering import Renderer
from peftlab.tasks.language.chat.template import Unrenderable
from peftlab.tasks.language.chat.texts import Marks, Text, Walk
from peftlab.tasks.language.chat.variants import Variant, variants_of

_PART_WRITTEN_OUT = ("'text': '", '"text": "')


@dataclass(frozen=True, slots=True)
class Slot:
    """A text in the rendered conversation, in characters."""

    text: Text
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Shown:
    """A rendered conversation: `messages` as they were handed over, and the slots of its texts.

    `lost`: texts that the template does not render, or changes. `pieces`: texts were cut at what
    the template looks for in them.
    """

    chat: Chat
    variant: Variant
    messages: list[dict[str, Any]]
    text: str
    texts: tuple[Text, ...]
    values: tuple[tuple[int, Any], ...]
    slots: tuple[Slot, ...]
    lost: tuple[Text, ...]
    pieces: bool = False

    @property
    def lost_numbers(self) -> list[int]:
        return [number for number, text in enumerate(self.texts) if text in self.lost]

    def slots_of(self, message: int) -> list[Slot]:
        return [slot for slot in self.slots if slot.text.message == message]


def spelling(text: str, number: int) -> str:
    """The form of this number in `spellings`."""
    return text if number == 0 else spellings(text)[number]


def spellings(text: str) -> tuple[str, ...]:
    """The forms in which templates write a text: as it is, as JSON, as Python's literal."""
    json_text = json.dumps(text, ensure_ascii=False)[1:-1]
    html = json_text
    for mark in "<>&'":
        html = html.replace(mark, f"\\u{ord(mark):04x}")
    return text, json_text, json.dumps(text)[1:-1], html, repr(text)[1:-1]


def show(renderer: Renderer, chat: Chat, *, prompt: bool, first: Variant | None = None) -> Shown:
    """Render a conversation with and without marks.

    Of the ways to hand it over, the first under which no text is lost; where there is none, the one
    that loses least. Raises `Unrenderable` where the template refuses all of them.
    """
    best: Shown | None = None
    refusal: Unrenderable | None = None
    for variant in variants_of(chat.messages, first):
        try:
            shown = _shown(renderer, chat, variant, prompt)
        except Unrenderable as error:
            refusal = refusal or error
            continue
        if not shown.lost:
            return shown
        if best is None or len(shown.lost) < len(best.lost):
            best = shown
    if best is None:
        assert refusal is not None
        raise refusal
    return best


def _shown(renderer: Renderer, chat: Chat, variant: Variant, prompt: bool) -> Shown:
    messages = variant.of(chat.messages)
    text = renderer.render(chat, messages, prompt=prompt)
    for inner in (None, renderer.inner):
        marks = Marks(chat.messages, text)
        walk = Walk(marks.put, inner)
        marked = renderer.render(chat, variant.of(walk.messages(chat.messages)), prompt=prompt)
        unmarked, found = marks.read(marked)
        if unmarked == text:
            placed = _placed(chat, variant, messages, text, walk, found)
            return replace(placed, pieces=inner is not None)
    raise Unrenderable(
        "the chat template treats texts by what they contain, so that where it puts them is unknown"
    )


def _placed(
    chat: Chat,
    variant: Variant,
    messages: list[dict[str, Any]],
    text: str,
    walk: Walk,
    found: Sequence[tuple[int, int, int]],
) -> Shown:
    slots = []
    whole: set[int] = set()
    for number, start, end in found:
        piece = walk.texts[number]
        written_out = variant.parts and text[:start].endswith(_PART_WRITTEN_OUT)
        if end >= 0 and text[start:end] in spellings(piece.core) and not written_out:
            slots.append(Slot(piece, start, end))
            whole.add(number)
    lost = tuple(piece for number, piece in enumerate(walk.texts) if number not in whole)
    return Shown(
        chat, variant, messages, text, tuple(walk.texts), tuple(walk.values), tuple(slots), lost
    )
