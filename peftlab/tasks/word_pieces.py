"""Words and the pieces a tokenizer makes of them: which piece bears the word's tag."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np

Characters = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Words:
    """Words of a row with the text they stand in, and the characters of it that each is."""

    text: str
    words: tuple[str, ...]
    places: tuple[Characters, ...]

    @classmethod
    def joined(cls, words: Sequence[str]) -> Words:
        """Words that were given as a list, joined by spaces."""
        starts = accumulate((len(word) + 1 for word in words), initial=0)
        places = tuple((s, s + len(word)) for s, word in zip(starts, words, strict=False))
        return cls(" ".join(words), tuple(words), places)

    @classmethod
    def split(cls, text: str) -> Words:
        """The words of a text, which white space parts."""
        words = text.split()
        places: list[Characters] = []
        at = 0
        for word in words:
            at = text.index(word, at)
            places.append((at, at + len(word)))
            at += len(word)
        return cls(text, tuple(words), tuple(places))

    @property
    def as_read(self) -> str:
        """The text that the tokenizer is given: single spaces, however the words were given."""
        return " ".join(self.words)


def words_of_pieces(words: Sequence[str], offsets: Sequence[Characters]) -> list[int | None]:
    """The word each piece is of, as `word_ids` of a tokenizer given the words joined by spaces.

    A piece is its last character's: some tokenizers count the space before a word to its first
    piece. None where that is a space, or the piece has no character.
    """
    places = Words.joined(words).places
    starts = np.asarray([start for start, _ in places])
    found: list[int | None] = []
    for start, end in offsets:
        word = int(np.searchsorted(starts, end - 1, side="right")) - 1
        inside = end > start and word >= 0 and end <= places[word][1]
        found.append(word if inside else None)
    return found


def tagged_pieces(
    of_piece: Sequence[int | None], words: int, which: Literal["first", "last"]
) -> list[int | None]:
    """For each word the piece that bears its tag; None for a word that no piece is made of."""
    found: list[int | None] = [None] * words
    for piece, word in enumerate(of_piece):
        if word is not None and (which == "last" or found[word] is None):
            found[word] = piece
    return found
