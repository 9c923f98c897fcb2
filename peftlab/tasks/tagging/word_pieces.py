"""Words and their tokens: which token of a word carries its tag."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Characters = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a row, the text that contains them, and their character spans in it."""

    text: str
    words: tuple[str, ...]
    places: tuple[Characters, ...]

    @classmethod
    def joined(cls, words: Sequence[str]) -> Words:
        """A list of words, joined by spaces."""
        starts = accumulate((len(word) + 1 for word in words), initial=0)
        places = tuple((s, s + len(word)) for s, word in zip(starts, words, strict=False))
        return cls(" ".join(words), tuple(words), places)

    @classmethod
    def located(cls, text: str, words: Sequence[str]) -> Words:
        """Words of a text in their order. Raises `ValueError` for one that is not there."""
        places: list[Characters] = []
        for word in words:
            at = text.index(word, places[-1][1] if places else 0)
            places.append((at, at + len(word)))
        return cls(text, tuple(words), tuple(places))

    @classmethod
    def split(cls, text: str) -> Words:
        """The words of a text, separated by white space."""
        words = text.split()
        places: list[Characters] = []
        at = 0
        for word in words:
            at = text.index(word, at)
            places.append((at, at + len(word)))
            at += len(word)
        return cls(text, tuple(words), tuple(places))


def pieces_of_words(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[str]]
) -> list[tuple[list[int], list[int]]]:
    """Ids of each row of words without special tokens, and the word of each id.

    Each word is tokenised alone, as with `is_split_into_words`, but with a space before it where
    the tokenizer treats a word in running text differently. A word spelt [SEP] is text.
    """
    lead = _lead(tokenizer)
    unique = list(
        dict.fromkeys(
            (lead if at else "") + word for words in rows for at, word in enumerate(words)
        )
    )
    ids_of = dict(zip(unique, _ids(tokenizer, unique), strict=True))
    read = []
    for words in rows:
        of_word = [ids_of[(lead if at else "") + word] for at, word in enumerate(words)]
        ids = [index for word in of_word for index in word]
        read.append((ids, [at for at, word in enumerate(of_word) for _ in word]))
    return read


def _lead(tokenizer: PreTrainedTokenizerBase) -> str:
    """The prefix of every word except the first."""
    running, first, spaced = _ids(tokenizer, ["it is", "it", " is"])
    return " " if running == first + spaced else ""


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    encoded = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, split_special_tokens=True,
        verbose=False,
    )  # fmt: skip
    return [list(ids) for ids in encoded["input_ids"]]


def tagged_pieces(
    of_piece: Sequence[int], words: int, which: Literal["first", "last"]
) -> list[int | None]:
    """For each word the token that carries its tag; None for a word without tokens."""
    chosen: list[int | None] = [None] * words
    for piece, word in enumerate(of_piece):
        if which == "last" or chosen[word] is None:
            chosen[word] = piece
    return chosen
