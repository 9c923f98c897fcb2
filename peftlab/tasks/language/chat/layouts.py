"""Rendered conversations with their trained turns, most of them at the cost of one render.

Conversations of one shape are equal but for their texts. What was learnt of the first is checked
against each further one: its text must be the first one's with its own texts in their places.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from peftlab.tasks.language.chat.conversation import Chat
from peftlab.tasks.language.chat.omissions import ShownOtherwise, check_tools
from peftlab.tasks.language.chat.rendering import Renderer
from peftlab.tasks.language.chat.shown import Shown, Slot, spelling, spellings
from peftlab.tasks.language.chat.texts import Text, Walk
from peftlab.tasks.language.chat.turns import Spans, Turn, spans_of

_MOST_SHAPES = 2000

Place = tuple[int, int]
"""A number of a literal, and a position in it."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """A rendered conversation without its texts: literals, and between them a slot for a text.

    `slots`: the number of each slot's text and of its spelling.
    """

    shown: Shown
    spans: Spans
    literals: tuple[str, ...]
    slots: tuple[tuple[int, int], ...]
    turns: tuple[tuple[int, Place, Place], ...]
    borders: tuple[Place, ...]


class Layouts:
    """Renders conversations with a template whose layouts are remembered by shape."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer
        self._known: dict[str, _Layout | None] = {}

    def rows(self, chat: Chat) -> list[tuple[Shown, Spans]]:
        """The row of a conversation; where need be one for each of its trained turns.

        Raises `Unrenderable`.
        """
        shape, texts = self._shape(chat, prompt=False)
        if shape not in self._known or self._known[shape] is not None:
            try:
                return [self._row(chat, shape, texts, prompt=False)]
            except ShownOtherwise:
                self._remember(shape, None)
        rows = []
        for one in chat.one_by_one():
            shape, texts = self._shape(one, prompt=False)
            rows.append(self._row(one, shape, texts, prompt=False))
        return rows

    def prompt(self, chat: Chat) -> tuple[Shown, Spans]:
        """A conversation with its generation prompt. Raises `Unrenderable`."""
        untrained = replace(chat, trained=(False,) * len(chat.messages))
        shape, texts = self._shape(untrained, prompt=True)
        return self._row(untrained, shape, texts, prompt=True)

    def _row(
        self, chat: Chat, shape: str, texts: Sequence[Text], *, prompt: bool
    ) -> tuple[Shown, Spans]:
        known = self._known.get(shape)
        if known is not None:
            check_tools(chat, text := self._render(known, chat, prompt))
            filled = _filled(known, chat, text, texts)
            if filled is not None:
                return filled
        variant = None if known is None else known.shown.variant
        shown, spans = spans_of(self.renderer, chat, prompt=prompt, first=variant)
        layout = _layout(shown, spans)
        if layout is not None:
            self._remember(shape, layout)
        return shown, spans

    def _render(self, known: _Layout, chat: Chat, prompt: bool) -> str:
        messages = known.shown.variant.of(chat.messages)
        return self.renderer.render(chat, messages, prompt=prompt)

    def _remember(self, shape: str, layout: _Layout | None) -> None:
        if len(self._known) < _MOST_SHAPES:
            self._known[shape] = layout

    def _shape(self, chat: Chat, *, prompt: bool) -> tuple[str, list[Text]]:
        """All of a conversation but its texts, tools and the ids of calls.

        Which of the template's constants a text contains belongs to the shape.
        """
        constants = self.renderer.constants
        walk = Walk(lambda text: f"{text.kind}{[c for c in constants if c in text.core]}")
        messages = [_without_ids(message) for message in walk.messages(chat.messages)]
        whole = [messages, chat.trained, dict(chat.variables), bool(chat.tools), prompt]
        return json.dumps(whole, sort_keys=True, default=str), walk.texts


def _with_ids_of(known: _Layout, chat: Chat) -> tuple[str, ...]:
    """The literals with the ids of another conversation's calls."""
    if _ids(known.shown.chat) == _ids(chat):
        return known.literals
    return tuple(_swapped(literal, known, chat) for literal in known.literals)


def _swapped(literal: str, known: _Layout, chat: Chat) -> str:
    for old, new in zip(_ids(known.shown.chat), _ids(chat), strict=False):
        literal = literal.replace(old, new)
    return literal


def _ids(chat: Chat) -> list[str]:
    """The ids of calls, each once, in their order."""
    ids: dict[str, None] = {}
    for message in chat.messages:
        calls = message.get("tool_calls") or ()
        for one in (message.get("id"), message.get("tool_call_id"), *(c.get("id") for c in calls)):
            if isinstance(one, str) and one:
                ids[one] = None
    return list(ids)


def _without_ids(message: Mapping[str, Any]) -> dict[str, Any]:
    bare = {key: value for key, value in message.items() if key not in ("id", "tool_call_id")}
    if bare.get("tool_calls"):
        bare["tool_calls"] = [
            {key: value for key, value in call.items() if key != "id"}
            for call in bare["tool_calls"]
        ]
    return bare


def _layout(shown: Shown, spans: Spans) -> _Layout | None:
    """None where a layout says too little: texts put in several pieces, or positions in texts."""
    numbers = {id(text): number for number, text in enumerate(shown.texts)}
    literals: list[str] = []
    slots: list[tuple[int, int]] = []
    starts: list[int] = []
    at = 0
    if shown.pieces:
        return None
    for slot in shown.slots:
        if slot.start < at:
            return None
        literals.append(shown.text[at : slot.start])
        starts.append(at)
        forms = spellings(slot.text.core)
        slots.append((numbers[id(slot.text)], forms.index(shown.text[slot.start : slot.end])))
        at = slot.end
    literals.append(shown.text[at:])
    starts.append(at)

    def place(position: int) -> Place:
        for number, start in enumerate(starts):
            if start <= position <= start + len(literals[number]):
                return number, position - start
        raise _InAText

    try:
        turns = tuple((turn.message, place(turn.start), place(turn.end)) for turn in spans.turns)
        borders = tuple(place(border) for border in spans.borders)
    except _InAText:
        return None
    return _Layout(shown, spans, tuple(literals), tuple(slots), turns, borders)


class _InAText(Exception):
    """A position lies inside a text."""


def _filled(
    known: _Layout, chat: Chat, text: str, texts: Sequence[Text]
) -> tuple[Shown, Spans] | None:
    """A text as the layout lets expect it; None where it is another.

    What stands before the first of its texts may differ where tools are rendered.
    """
    literals = _with_ids_of(known, chat)
    written = [spelling(texts[number].core, form) for number, form in known.slots]
    length = sum(map(len, literals[1:])) + sum(map(len, written))
    first = len(text) - length
    if first < 0 or not (chat.tools or text[:first] == literals[0]):
        return None
    places = [start for _, start, _ in known.turns] + list(known.borders)
    if chat.tools and any(number == 0 for number, _ in places):
        return None
    parts: list[str] = []
    slots: list[Slot] = []
    starts = [0]
    at = first
    for (number, _), put, literal in zip(known.slots, written, literals[1:], strict=True):
        slots.append(Slot(texts[number], at, at + len(put)))
        parts += [put, literal]
        at += len(put)
        starts.append(at)
        at += len(literal)
    if text[first:] != "".join(parts):
        return None

    swapped = literals is not known.literals

    def position(place: Place) -> int:
        number, offset = place
        if swapped:
            offset = len(_swapped(known.literals[number][:offset], known, chat))
        return starts[number] + offset

    turns = tuple(Turn(m, position(start), position(end)) for m, start, end in known.turns)
    shown = replace(
        known.shown, chat=chat, text=text, texts=tuple(texts), slots=tuple(slots),
        lost=tuple(texts[number] for number in known.shown.lost_numbers),
    )  # fmt: skip
    borders = tuple(position(place) for place in known.borders)
    return shown, replace(known.spans, turns=turns, borders=borders)
