"""Token ids and labels for causal language modelling.

Prompt and completion are tokenised separately and their ids joined, so their boundary is exact and
the prompt's ids are the same in generation. Every sequence is `[BOS] text [EOS]`, with a BOS only
where the tokenizer adds one and the text does not start with it. EOS is trained, so that the model
learns to stop; truncated rows have none, so that it does not learn to stop in the middle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peftlab.errors import DataError
from peftlab.tasks.encoding import IGNORED, Gathered, batches_of, token_ids
from peftlab.tasks.task import Encoded

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Marks:
    """The ids that begin and end a sequence; empty where the tokenizer has none."""

    start: tuple[int, ...]
    end: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Marks:
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        opened = tokenizer("a")["input_ids"]
        start = (bos,) if isinstance(bos, int) and list(opened[:1]) == [bos] else ()
        return cls(start, (eos,) if isinstance(eos, int) else ())

    def opened(self, ids: list[int]) -> list[int]:
        """The ids with a leading BOS, which is not doubled."""
        return ids if tuple(ids[: len(self.start)]) == self.start else [*self.start, *ids]

    def closed(self, ids: list[int]) -> list[int]:
        return ids if self.end and tuple(ids[-1:]) == self.end else [*ids, *self.end]


@dataclass(frozen=True, slots=True)
class Row:
    """Ids [T], labels [T], and the row's untruncated length."""

    ids: list[int]
    labels: list[int]
    whole_length: int

    @property
    def trained(self) -> int:
        """The number of predicted tokens."""
        return len(self.labels) - self.labels.count(IGNORED)


def encode_pairs(
    rows: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    separator: str,
    max_length: int,
    *,
    all_tokens: bool = False,
) -> Encoded:
    """Prompt and completion rows, with labels on completion and EOS, or on all tokens."""
    marks = Marks.of(tokenizer)
    gathered = Gathered()
    for batch in batches_of(rows):
        prompts = token_ids(tokenizer, [prompt + separator for prompt in batch["prompt"]])
        completions = token_ids(tokenizer, batch["completion"])
        add_rows(
            gathered,
            [
                _join(
                    marks.opened(prompt),
                    marks.closed(completion),
                    len(marks.start),
                    max_length,
                    all_tokens,
                )
                for prompt, completion in zip(prompts, completions, strict=True)
            ],
            max_length,
        )
    return finished(gathered, max_length)


def _join(
    prompt: list[int], completion: list[int], opening: int, max_length: int, all_tokens: bool
) -> Row:
    """A row that is too long loses the prompt's oldest tokens first, down to half of the room.

    The rest is cut from the completion's end, so some completion always remains.
    """
    whole = len(prompt) + len(completion)
    if whole > max_length:
        start, prompt = prompt[:opening], prompt[opening:]
        room = max_length - len(start)
        kept = min(len(prompt), max(room - len(completion), room // 2))
        prompt = start + prompt[len(prompt) - kept :]
        completion = completion[: max_length - len(prompt)]
    return _row(prompt + completion, 0 if all_tokens else len(prompt), whole)


def _row(ids: list[int], untrained: int, whole_length: int) -> Row:
    # Nothing comes before the first token, so it is never predicted.
    untrained = max(untrained, 1)
    return Row(ids, [IGNORED] * len(ids[:untrained]) + ids[untrained:], whole_length)


def encode_text(
    rows: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    in_pieces: bool = False,
) -> Encoded:
    """Plain text, one sequence per row, every token trained; `in_pieces` splits long rows."""
    marks = Marks.of(tokenizer)
    gathered = Gathered()
    for batch in batches_of(rows):
        whole = [marks.closed(marks.opened(ids)) for ids in token_ids(tokenizer, batch["text"])]
        if in_pieces:
            pieces = [
                ids[start : start + max_length]
                for ids in whole
                for start in range(0, len(ids), max_length)
            ]
            add_rows(gathered, [_row(ids, 0, len(ids)) for ids in pieces], max_length)
            continue
        add_rows(gathered, [_row(ids[:max_length], 0, len(ids)) for ids in whole], max_length)
    return finished(gathered, max_length)


def pack_text(
    rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Encoded:
    """Plain text joined into blocks of `max_length` tokens, the last one shorter.

    Rows are joined with EOS between (and BOS, where the tokenizer adds one); a token attends to the
    rows before it in its block. No token is truncated.
    """
    marks = Marks.of(tokenizer)
    gathered = Gathered()
    stream: list[int] = []
    for batch in batches_of(rows):
        for ids in token_ids(tokenizer, batch["text"]):
            stream += marks.closed(marks.opened(ids))
        full = len(stream) // max_length * max_length
        blocks = [stream[start : start + max_length] for start in range(0, full, max_length)]
        add_rows(gathered, [_row(block, 0, len(block)) for block in blocks], max_length)
        stream = stream[full:]
    if len(stream) > 1:
        add_rows(gathered, [_row(stream, 0, len(stream))], max_length)
    return finished(gathered, max_length)


def add_rows(gathered: Gathered, rows: Sequence[Row], max_length: int) -> None:
    """Add rows to `gathered`; rows longer than `max_length` count as truncated."""
    if rows:
        gathered.add(
            {"input_ids": [row.ids for row in rows], "labels": [row.labels for row in rows]},
            whole_lengths=[row.whole_length for row in rows],
            truncated=sum(row.whole_length > max_length for row in rows),
            trained=sum(row.trained for row in rows),
        )


def finished(gathered: Gathered, max_length: int) -> Encoded:
    """The gathered rows. Raises `DataError` where none has a trained token."""
    if gathered.trained == 0:
        raise DataError(
            f"no row has a token to train on after truncation to data.max_length={max_length}: "
            "every label is masked. Raise data.max_length, or give longer texts."
        )
    return gathered.encoded()


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], separator: str, room: int
) -> list[list[int]]:
    """Prompts encoded as in training, cut from the left to `room` tokens, BOS kept."""
    marks = Marks.of(tokenizer)
    opening = len(marks.start)
    cut = []
    for ids in token_ids(tokenizer, [prompt + separator for prompt in prompts]):
        opened = marks.opened(ids)
        if len(opened) > room:
            opened = opened[:opening] + opened[len(opened) - room + opening :]
        cut.append(opened)
    return cut
