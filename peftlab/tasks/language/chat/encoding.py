"""Token ids and labels of conversations.

A conversation that is too long loses its oldest exchanges first, except leading system turns, as
in serving; the rest begins with a user turn. Where the last exchange alone is too long, its end is
cut, with the token that ends the turn; where its prompt alone leaves no room, the row is dropped.
All of these rows count as truncated.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from peftlab.data.bad_rows import BadRows
from peftlab.errors import DataError
from peftlab.tasks.encoding import IGNORED, Gathered, as_rows, batches_of
from peftlab.tasks.language.causal_encoding import Row, add_rows, finished
from peftlab.tasks.language.chat.advice import with_advice
from peftlab.tasks.language.chat.conversation import Chat, LossOn
from peftlab.tasks.language.chat.invariant import broken
from peftlab.tasks.language.chat.layouts import Layouts
from peftlab.tasks.language.chat.rendering import Renderer
from peftlab.tasks.language.chat.shown import Shown
from peftlab.tasks.language.chat.template import Unrenderable
from peftlab.tasks.language.chat.tokens import Tokens, tokenise
from peftlab.tasks.language.chat.turns import Spans
from peftlab.tasks.task import Encoded

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("peftlab")


@dataclass(slots=True)
class _Notes:
    """What is said once about all rows."""

    said: Counter[str] = field(default_factory=Counter)

    def add(self, chat: Chat, shown: Shown, spans: Spans) -> None:
        if spans.bent:
            self.said["bent"] += 1
        if not shown.variant.developer:
            self.said["developer"] += 1
        if shown.lost:
            self.said["lost"] += 1

    def log(self) -> None:
        for name, text in _SAID.items():
            if self.said[name]:
                logger.warning("%d rows: %s", self.said[name], text)


_SAID = {
    "bent": (
        "the prompt that the chat template gives in generation differs from these conversations by "
        "white space or thought tags; what is trained begins after what the two share"
    ),
    "developer": "the chat template has no role 'developer'; such turns are given as system turns",
    "lost": "the chat template leaves out thoughts of earlier turns, as it does in generation",
}


def encode_chats(
    rows: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    loss_on: LossOn,
    system: str | None,
) -> Encoded:
    """Rows as `Chat.of` reads them. Raises `BadRows` for rows that cannot be trained."""
    gathered, notes = Gathered(), _Notes()
    refused: dict[int, str] = {}
    encoder = _Encoder(Layouts(Renderer(tokenizer)), max_length, loss_on, notes)
    dropped = made = conversations = 0
    for batch in batches_of(rows):
        records = as_rows(batch)
        encoded: list[Row] = []
        placed: list[tuple[int, Chat, Shown, Spans]] = []
        for index, record in enumerate(records, start=conversations):
            try:
                chat = Chat.of(record, loss_on=loss_on, system=system)
                for shown, spans in encoder.place(chat):
                    one = chat if loss_on == "all" else shown.chat
                    placed.append((index, one, shown, spans))
            except Unrenderable as error:
                refused.setdefault(index, with_advice(str(error)))
        conversations += len(records)
        for (index, chat, *_), row in zip(placed, encoder.rows(placed), strict=True):
            if isinstance(row, str):
                refused.setdefault(index, with_advice(row))
            else:
                encoded += encoder.fitted(chat, row)
        made += len(placed)
        add_rows(gathered, [row for row in encoded if row.ids], max_length)
        lost = [row.whole_length for row in encoded if not row.ids]
        gathered.leave_out(lost)
        dropped += len(lost)
    if refused:
        raise BadRows(refused)
    notes.log()
    if made > conversations:
        gathered.conversations = conversations
        logger.warning(
            "%d conversations give %d rows, one for each trained turn: the chat template shows "
            "earlier turns otherwise than the last one", conversations, made,
        )  # fmt: skip
    if dropped:
        logger.warning(
            "%d of %d conversations are dropped: the last question alone leaves no room for an "
            "answer in data.max_length=%d", dropped, made, max_length,
        )  # fmt: skip
    return finished(gathered, max_length)


@dataclass(frozen=True, slots=True)
class _Encoder:
    """Conversations as rows of ids and labels."""

    layouts: Layouts
    max_length: int
    loss_on: LossOn
    notes: _Notes

    def place(self, chat: Chat) -> list[tuple[Shown, Spans]]:
        """The rendered rows of a conversation. Raises `Unrenderable`."""
        if self.loss_on == "all":
            chat = replace(chat, trained=(False,) * len(chat.messages))
        return self.layouts.rows(chat)

    def rows(self, placed: Sequence[tuple[int, Chat, Shown, Spans]]) -> list[Row | str]:
        """Ids and labels; for a row that breaks the invariant what it breaks."""
        tokenizer = self.layouts.renderer.tokenizer
        tokens = tokenise_shown(self.layouts.renderer, [(s, spans) for _, _, s, spans in placed])
        made: list[Row | str] = []
        for (_, chat, shown, spans), given in zip(placed, tokens, strict=True):
            row = _row(given, spans, self.loss_on, tokenizer.eos_token_id)
            reason = None
            if self.loss_on != "all":
                reason = broken(self.layouts.renderer, shown, spans, given, row.labels)
            self.notes.add(chat, shown, spans)
            made.append(row if reason is None else reason)
        return made

    def fitted(self, chat: Chat, row: Row) -> list[Row]:
        """The row; of a long conversation what is left of it, without ids where no answer fits."""
        whole = len(row.ids)
        if whole <= self.max_length:
            return [row]
        shorter: Chat | None = chat
        rows: list[Row] = [row]
        while (shorter := shorter.shortened() if shorter is not None else None) is not None:
            try:
                placed = [(0, shown.chat, shown, spans) for shown, spans in self.place(shorter)]
            except Unrenderable:
                continue
            kept = [one for one in self.rows(placed) if isinstance(one, Row)]
            rows = kept or rows
            if max(len(one.ids) for one in rows) <= self.max_length:
                break
        cut = [
            Row(one.ids[: self.max_length], one.labels[: self.max_length], whole) for one in rows
        ]
        return [one if one.trained else Row([], [], whole) for one in cut]


def tokenise_shown(renderer: Renderer, placed: Sequence[tuple[Shown, Spans]]) -> list[Tokens]:
    """The ids of rendered conversations; no token lies across the end of a prompt."""
    return tokenise(
        renderer.tokenizer,
        [shown.text for shown, _ in placed],
        [spans.borders for _, spans in placed],
        [[(turn.start, turn.end) for turn in spans.turns] for _, spans in placed],
        renderer.end_marks,
    )


def _row(tokens: Tokens, spans: Spans, loss_on: LossOn, eos: int | None) -> Row:
    """Ids and labels; the end token is appended where the template ends turns without one."""
    end = [eos] if spans.open and eos is not None else []
    if loss_on == "all":
        ids = [*tokens.ids, *end]
        return Row(ids, [IGNORED, *ids[1:]], len(ids))
    places = [tokens.span(turn.start, turn.end) for turn in spans.turns]
    last = places[-1][1]
    ids = [*tokens.ids[:last], *end]
    labels = [IGNORED] * len(ids)
    for start, stop in places:
        labels[max(start, 1) : stop] = ids[max(start, 1) : stop]
    if end:
        labels[-1] = end[0]
    return Row(ids, labels, len(ids))


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
