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
from peftlab.tasks.batches import of_batches
from peftlab.tasks.encoding import IGNORED, Gathered, as_rows
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
    encoder = _Encoder(Layouts(Renderer(tokenizer)), max_length, loss_on, system)
    gathered, said = Gathered(), Counter[str]()
    refused: dict[int, str] = {}
    dropped = made = 0
    for part in of_batches(rows, encoder.batch):
        refused |= part.refused
        said += part.said
        made += part.made
        add_rows(gathered, [row for row in part.rows if row.ids], max_length)
        lost = [row.whole_length for row in part.rows if not row.ids]
        gathered.leave_out(lost)
        dropped += len(lost)
    if refused:
        raise BadRows(refused)
    for name, text in _SAID.items():
        if said[name]:
            logger.warning("%d rows: %s", said[name], text)
    if made > len(rows):
        gathered.conversations = len(rows)
        logger.warning(
            "%d conversations give %d rows, one for each trained turn: the chat template shows "
            "earlier turns otherwise than the last one", len(rows), made,
        )  # fmt: skip
    if dropped:
        logger.warning(
            "%d of %d conversations are dropped: the last question alone leaves no room for an "
            "answer in data.max_length=%d", dropped, made, max_length,
        )  # fmt: skip
    return finished(gathered, max_length)


@dataclass(slots=True)
class _Part:
    """The rows of a batch, without ids where no answer fits; why others are refused, by index.

    `made` counts rows before any was dropped, `said` what is to be said once about all rows.
    """

    rows: list[Row] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    said: Counter[str] = field(default_factory=Counter)
    made: int = 0


@dataclass(frozen=True, slots=True)
class _Encoder:
    """Conversations as rows of ids and labels."""

    layouts: Layouts
    max_length: int
    loss_on: LossOn
    system: str | None

    def batch(self, columns: Mapping[str, Sequence[Any]], first: int) -> _Part:
        """Conversations as columns; `first` is the first one's index among all."""
        part = _Part()
        placed: list[tuple[int, Chat, Shown, Spans]] = []
        for index, record in enumerate(as_rows(columns), start=first):
            try:
                chat = Chat.of(record, loss_on=self.loss_on, system=self.system)
                for shown, spans in self.place(chat):
                    one = chat if self.loss_on == "all" else shown.chat
                    placed.append((index, one, shown, spans))
            except Unrenderable as error:
                part.refused.setdefault(index, with_advice(str(error)))
        part.made = len(placed)
        for (index, chat, shown, spans), row in zip(placed, self.rows(placed), strict=True):
            part.said.update(_notes(shown, spans))
            if isinstance(row, str):
                part.refused.setdefault(index, with_advice(row))
            else:
                part.rows += self.fitted(chat, row)
        return part

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
        for (_, _, shown, spans), given in zip(placed, tokens, strict=True):
            row = _row(given, spans, self.loss_on, tokenizer.eos_token_id)
            reason = None
            if self.loss_on != "all":
                reason = broken(self.layouts.renderer, shown, spans, given, row.labels)
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


def _notes(shown: Shown, spans: Spans) -> list[str]:
    """The names in `_SAID` of what holds for a row."""
    held = {"bent": spans.bent, "developer": not shown.variant.developer, "lost": bool(shown.lost)}
    return [name for name, holds in held.items() if holds]


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
