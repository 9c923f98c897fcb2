"""Prompts of conversations as generation sends them, and the token that ends an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from peftlab.errors import DataError
from peftlab.tasks.language.chat.conversation import Chat
from peftlab.tasks.language.chat.encoding import tokenise_shown
from peftlab.tasks.language.chat.layouts import Layouts
from peftlab.tasks.language.chat.rendering import Renderer
from peftlab.tasks.language.chat.template import Unrenderable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def turn_end_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The token with which the template ends assistant turns, if it has one."""
    messages = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    layouts = Layouts(Renderer(tokenizer))
    try:
        ((shown, spans),) = layouts.rows(Chat(messages, (False, True)))
    except Unrenderable:
        return ()
    (turn,) = spans.turns
    marks = [
        mark[0]
        for mark in layouts.renderer.end_marks.finditer(shown.text, turn.start)
        if mark.end() == turn.end
    ]
    if spans.open or not marks:
        return ()
    end_id = tokenizer.convert_tokens_to_ids(marks[0])
    return (end_id,) if isinstance(end_id, int) else ()


def chat_prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    room: int,
    *,
    system: str | None,
) -> list[list[int]]:
    """Prompt ids of conversations, as in training, in at most `room` tokens.

    Trailing assistant turns are dropped, as the model generates them. Raises `DataError` for a
    conversation without another speaker, that the template refuses, or whose last question is
    longer than `room`.
    """
    layouts = Layouts(Renderer(tokenizer))
    return [
        _prompt_ids(layouts, row, room, system, number) for number, row in enumerate(rows, start=1)
    ]


def _prompt_ids(
    layouts: Layouts, row: Mapping[str, Any], room: int, system: str | None, number: int
) -> list[int]:
    chat = Chat.of(row, loss_on="all", system=system)
    count = len(chat.messages)
    while count and chat.messages[count - 1]["role"] == "assistant":
        count -= 1
    if not count or chat.messages[count - 1]["role"] in ("system", "developer"):
        raise DataError(f"row {number} to predict: the conversation has no turn to answer.")
    shorter: Chat | None = replace(chat.upto(count), trained=(True,) * count)
    ids: list[int] = []
    while shorter is not None:
        try:
            placed = layouts.prompt(shorter)
        except Unrenderable as error:
            raise DataError(f"row {number} to predict: {error}.") from None
        (tokens,) = tokenise_shown(layouts.renderer, [placed])
        ids = tokens.ids
        if len(ids) <= room:
            return ids
        shorter = shorter.shortened()
    raise DataError(
        f"row {number} to predict: its last question takes {len(ids)} tokens, but {room} fit; "
        "shorten it, or lower eval.generation.max_new_tokens."
    )
