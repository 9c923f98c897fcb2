"""Token ids and labels of conversations.

A conversation that is too long loses its oldest exchanges first, except a leading system turn, as
in serving; the rest begins with a user turn. Where the last exchange alone is too long, its end is
cut, with the token that ends the turn; where its prompt alone leaves no room, the row is dropped.
All of these rows count as truncated.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from peftlab.errors import DataError
from peftlab.tasks.encoding import IGNORED, Gathered, batches_of
from peftlab.tasks.language.causal_encoding import Row, add_rows, finished
from peftlab.tasks.language.chat.template import Message, Unrenderable
from peftlab.tasks.language.chat.turns import (
    Rendered,
    Tokens,
    render_prompt,
    render_turns,
    tokenise,
)
from peftlab.tasks.task import Encoded

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("peftlab")

LossOn = Literal["completion", "assistant", "all"]
"""completion: the last answer, or the whole completion where rows have prompt and completion."""

_NAMED_ROWS = 3


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages, and whether each is trained."""

    messages: tuple[Message, ...]
    trained: tuple[bool, ...]

    @classmethod
    def of(
        cls,
        messages: Sequence[Message],
        prompt_messages: int,
        *,
        loss_on: LossOn,
        system: str | None,
    ) -> Chat:
        """`prompt_messages`: how many messages are the prompt; 0 where rows do not say.

        Raises `Unrenderable` where no message would be trained.
        """
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if loss_on == "completion":
            completion = [i for i in answers if i >= prompt_messages]
            answers = completion if prompt_messages else answers[-1:]
        chat = cls(tuple(messages), tuple(i in answers for i in range(len(messages))))
        if loss_on != "all":
            if not answers:
                raise Unrenderable("it has no assistant turn to train on")
            # Nothing after the last answer is trained.
            chat = cls(chat.messages[: answers[-1] + 1], chat.trained[: answers[-1] + 1])
        if system is None or messages[0]["role"] == "system":
            return chat
        first: Message = {"role": "system", "content": system}
        return cls((first, *chat.messages), (False, *chat.trained))

    def shortened(self) -> Chat | None:
        """Without its oldest exchange; None where one is left, or nothing would be trained."""
        kept = int(self.messages[0]["role"] == "system")
        users = [i for i in range(kept + 1, len(self.messages)) if self._is_user(i)]
        if not users or not any(self.trained[users[0] :]):
            return None
        return Chat(
            self.messages[:kept] + self.messages[users[0] :],
            self.trained[:kept] + self.trained[users[0] :],
        )

    def _is_user(self, index: int) -> bool:
        return self.messages[index]["role"] == "user"


@dataclass(slots=True)
class _Refused:
    """The reasons why rows cannot be rendered, with the first rows of each."""

    rows: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[int]] = field(default_factory=dict)

    def add(self, reason: str, number: int) -> None:
        self.rows[reason] += 1
        if len(self.first.setdefault(reason, [])) < _NAMED_ROWS:
            self.first[reason].append(number)

    def raise_any(self, advice: str) -> None:
        if not self.rows:
            return
        lines = []
        for reason, count in self.rows.most_common(_NAMED_ROWS):
            named = ", ".join(map(str, self.first[reason]))
            more = f" and {count - len(self.first[reason])} more" if count > _NAMED_ROWS else ""
            lines.append(f"row {named}{more}: {reason}.")
        raise DataError("\n".join([*lines, advice]))


_ADVICE = (
    "Leave such rows out, train on the last answers alone (task.loss_on=completion), or give "
    "another template (task.chat_template=FILE)."
)


def encode_chats(
    rows: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    loss_on: LossOn,
    system: str | None,
) -> Encoded:
    """Rows of `messages` and `prompt_messages`. Raises `DataError` for unrenderable rows."""
    gathered, refused = Gathered(), _Refused()
    dropped = first = 0
    for batch in batches_of(rows):
        columns: Mapping[str, Any] = batch
        counts = columns.get("prompt_messages") or [0] * len(columns["messages"])
        chats: list[Chat] = []
        rendered: list[Rendered] = []
        for number, (messages, count) in enumerate(
            zip(columns["messages"], counts, strict=True), start=first + 1
        ):
            try:
                chat = Chat.of(messages, count, loss_on=loss_on, system=system)
                rendered.append(render_turns(tokenizer, chat.messages, chat.trained))
                chats.append(chat)
            except Unrenderable as error:
                refused.add(str(error), number)
        first += len(counts)
        encoded = _encode(tokenizer, chats, rendered, max_length, loss_on)
        add_rows(gathered, [row for row in encoded if row.ids], max_length)
        lost = [row.whole_length for row in encoded if not row.ids]
        gathered.leave_out(lost)
        dropped += len(lost)
    refused.raise_any(_ADVICE)
    if dropped:
        logger.warning(
            "%d of %d conversations are dropped: the last question alone leaves no room for an "
            "answer in data.max_length=%d", dropped, len(rows), max_length,
        )  # fmt: skip
    return finished(gathered, max_length)


def _encode(
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[Chat],
    rendered: Sequence[Rendered],
    max_length: int,
    loss_on: LossOn,
) -> list[Row]:
    """Encode a batch; rows that do not fit have no ids."""
    rows = []
    for chat, text, tokens in zip(chats, rendered, tokenise(tokenizer, rendered), strict=True):
        row = _row(tokens, loss_on, tokenizer.eos_token_id if text.open else None)
        if len(row.ids) > max_length:
            row = replace(_fitted(tokenizer, chat, max_length, loss_on), whole_length=len(row.ids))
        rows.append(row)
    return rows


def _fitted(
    tokenizer: PreTrainedTokenizerBase, chat: Chat, max_length: int, loss_on: LossOn
) -> Row:
    """A long conversation shortened and cut; no ids where no answer fits."""
    row = Row([], [], 0)
    shorter: Chat | None = chat
    while shorter is not None:
        chat = shorter
        text = render_turns(tokenizer, chat.messages, chat.trained)
        row = _row(
            tokenise(tokenizer, [text])[0], loss_on, tokenizer.eos_token_id if text.open else None
        )
        if len(row.ids) <= max_length:
            return row
        shorter = chat.shortened()
    cut = Row(row.ids[:max_length], row.labels[:max_length], 0)
    return cut if cut.trained else Row([], [], 0)


def _row(tokens: Tokens, loss_on: LossOn, end: int | None) -> Row:
    """Ids and labels; `end` is appended where the template ends turns without a token."""
    ids = tokens.ids
    if loss_on == "all":
        ids = ids if end is None else [*ids, end]
        return Row(ids, [IGNORED, *ids[1:]], len(ids))
    last = tokens.turns[-1][1]
    ids = ids[:last] if end is None else [*ids[:last], end]
    labels = [IGNORED] * len(ids)
    for start, stop in tokens.turns:
        labels[max(start, 1) : stop] = ids[max(start, 1) : stop]
    if end is not None:
        labels[-1] = end
    return Row(ids, labels, len(ids))


def chat_prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    room: int,
    *,
    system: str | None,
) -> list[list[int]]:
    """Prompt ids of conversations, as in training, in at most `room` tokens.

    Trailing assistant turns are dropped, as the model generates them. Raises `DataError` for a
    conversation without another speaker, that the template refuses, or whose last question is
    longer than `room`.
    """
    return [
        _prompt_ids(tokenizer, messages, room, system, number)
        for number, messages in enumerate(conversations, start=1)
    ]


def _prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    room: int,
    system: str | None,
    number: int,
) -> list[int]:
    prompt_turns = list(messages)
    while prompt_turns and prompt_turns[-1]["role"] == "assistant":
        prompt_turns.pop()
    if not prompt_turns or prompt_turns[-1]["role"] == "system":
        raise DataError(f"row {number} to predict: the conversation has no turn to answer.")
    chat = Chat.of(prompt_turns, 0, loss_on="all", system=system)
    shorter: Chat | None = replace(chat, trained=(True,) * len(chat.messages))
    ids: list[int] = []
    while shorter is not None:
        try:
            prompt = render_prompt(tokenizer, shorter.messages)
        except Unrenderable as error:
            raise DataError(f"row {number} to predict: {error}.") from None
        ids = tokenise(tokenizer, [prompt])[0].ids
        if len(ids) <= room:
            return ids
        shorter = shorter.shortened()
    raise DataError(
        f"row {number} to predict: its last question takes {len(ids)} tokens, but {room} fit; "
        "shorten it, or lower eval.generation.max_new_tokens."
    )
