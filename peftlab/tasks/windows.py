"""Long rows split into windows: their special tokens, positions, and the tokens each owns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from peftlab.errors import CheckFailed, ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Window = tuple[int, int]
"""The start and the end (excluded) of a window."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The special tokens before, between and after one text or two.

    `types` are the token types of these five parts, texts included; None for models without them.
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    types: tuple[int, int, int, int, int] | None

    @property
    def size(self) -> int:
        """The number of special tokens."""
        return len(self.before) + len(self.between) + len(self.after)

    def around(self, first: Sequence[int], second: Sequence[int] = ()) -> dict[str, list[int]]:
        """`input_ids`, and `token_type_ids` where used, around the texts' ids."""
        parts = (self.before, first, self.between, second, self.after)
        row = {"input_ids": [i for part in parts for i in part]}
        if self.types is not None:
            row["token_type_ids"] = [
                kind for kind, part in zip(self.types, parts, strict=True) for _ in part
            ]
        return row


def frame_of(tokenizer: PreTrainedTokenizerBase, *, pair: bool) -> Frame:
    """A tokenizer's frame, read from its encoding of a letter. Raises as `check_fast`."""
    check_fast(tokenizer)
    whole: Any = tokenizer("a", "a" if pair else None)
    parts: tuple[list[int], ...] = ([], [], [], [], [])
    kinds: list[int] = [0] * 5
    types = whole.get("token_type_ids") or [0] * len(whole["input_ids"])
    at = 0
    for index, sequence, kind in zip(whole["input_ids"], whole.sequence_ids(0), types, strict=True):
        if sequence is not None:
            at = 1 if sequence == 0 else 3
        elif at in (1, 3):
            at = 2 if at == 1 and pair else 4
        parts[at].append(index)
        kinds[at] = kind
    before, _, between, _, after = map(tuple, parts)
    used = (kinds[0], kinds[1], kinds[2], kinds[3], kinds[4]) if any(types) else None
    return Frame(before, between, after, used)


def check_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `CheckFailed` for a slow tokenizer, which has no character offsets of tokens."""
    if not tokenizer.is_fast:
        raise CheckFailed(
            f"{tokenizer.name_or_path}: {type(tokenizer).__name__} has no character offsets of "
            "tokens, which this task needs; choose a model with a tokenizer.json."
        )


def pieces(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """Ids of each text without special tokens, with character spans. A spelt-out [SEP] is text."""
    check_fast(tokenizer)
    encoded = tokenizer(
        list(texts), add_special_tokens=False, return_offsets_mapping=True,
        return_attention_mask=False, split_special_tokens=True, verbose=False,
    )  # fmt: skip
    return [
        (list(ids), [(int(a), int(b)) for a, b in offsets])
        for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


def shared_tokens(stride: int | Literal["auto"], room: int, *, auto: int) -> int:
    """Tokens that neighbouring windows share; a stride of auto is `room // auto`.

    Raises `ConfigError` where windows of `room` tokens would not advance.
    """
    if stride == "auto":
        return room // auto
    if stride >= room:
        raise ConfigError(
            f"task.stride is {stride}, but a window has room for {room} tokens and must "
            "share fewer with the next; lower it, or raise data.max_length."
        )
    return stride


def windows(count: int, room: int, shared: int) -> list[Window]:
    """Windows of at most `room` over `count` tokens, each sharing `shared` with the one before."""
    spans = [(0, min(room, count))]
    while spans[-1][1] < count:
        start = spans[-1][0] + room - shared
        spans.append((start, min(start + room, count)))
    return spans


def owners(count: int, spans: Sequence[Window]) -> NDArray[np.int64]:
    """For each token the window with the largest minimum of left and right context: [count].

    The "maximum context" of J. Devlin et al., BERT, 2019; of equals the earlier.
    """
    at = np.arange(count)
    context = np.stack([
        np.where((at >= start) & (at < end), np.minimum(at - start, end - 1 - at), -1)
        for start, end in spans
    ])  # fmt: skip
    return np.asarray(context.argmax(axis=0), dtype=np.int64)
