"""The check of every row finds each kind of wrong span."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from peftlab.tasks.encoding import IGNORED
from peftlab.tasks.language.chat.conversation import Chat
from peftlab.tasks.language.chat.encoding import tokenise_shown
from peftlab.tasks.language.chat.invariant import broken
from peftlab.tasks.language.chat.layouts import Layouts
from peftlab.tasks.language.chat.rendering import Renderer
from tests.tasks.language.chat.forms import rows
from tests.tasks.language.chat.templates import tokenizer_for
from tests.tasks.language.chat.tokenizers import CHATML

END = len("<|im_end|>")
ANSWER = len("Mostly white or clear.")
HEADER = len("<|im_start|>assistant\n")


def reason(*, start: int = 0, end: int = 0, first: int = 0, last: int = 0) -> str | None:
    """Of the first of two turns with its span moved by characters, and its labels by tokens."""
    renderer = Renderer(tokenizer_for(CHATML))
    chat = Chat.of(rows("")["several turns"], loss_on="assistant", system=None)
    ((shown, spans),) = Layouts(renderer).rows(chat)
    (tokens,) = tokenise_shown(renderer, [(shown, spans)])
    turn, other = spans.turns
    moved = replace(turn, start=turn.start + start, end=turn.end + end)
    labels: list[Any] = [IGNORED] * len(tokens.ids)
    for one, by in ((moved, (first, last)), (other, (0, 0))):
        a, b = tokens.span(one.start, one.end)
        labels[a + by[0] : b + by[1]] = tokens.ids[a + by[0] : b + by[1]]
    return broken(renderer, shown, replace(spans, turns=(moved, other)), tokens, labels)


@pytest.mark.parametrize(
    ("moved", "expected"),
    [
        ({}, None),
        ({"start": 3}, "is not in the trained part of turn 2"),
        ({"start": -HEADER}, "the header of a role is in the trained part of turn 2"),
        ({"start": -HEADER - END - 1 - 4}, "of another turn is in the trained part of turn 2"),
        ({"end": -END}, "no end token ends turn 2"),
        ({"end": -END - 3}, "is not in the trained part of turn 2"),
        ({"end": 1 + len("<|im_start|>user")}, "no end token ends turn 2"),
        ({"first": 1}, "a token is not trained of turn 2"),
        ({"last": -1}, "a token is not trained of turn 2"),
        ({"first": -1}, "a token outside of the answers would be trained"),
        ({"last": 1}, "a token outside of the answers would be trained"),
    ],
)
def test_a_wrong_span_is_found(moved: dict[str, int], expected: str | None) -> None:
    found = reason(**moved)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert expected in found
