"""Token ids of rendered conversations, with the characters that each token stands for.

The ids are those of the whole text, unless a token would lie across the end of a prompt: there the
text is tokenised in two pieces, so that training and generation see the same prompt.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import le
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Places = Sequence[int]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Ids [T], and the first and last character (excluded) of each token, which never go back."""

    ids: list[int]
    starts: Places
    ends: Places

    def span(self, start: int, end: int) -> tuple[int, int]:
        """The first token that reaches beyond `start`, and the first that begins at `end`."""
        first = bisect_right(self.ends, start)
        return first, max(first, bisect_left(self.starts, end))


def tokenise(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    borders: Sequence[Sequence[int]],
    spans: Sequence[Sequence[tuple[int, int]]],
    marks: re.Pattern[str],
) -> list[Tokens]:
    """Ids of texts; no token lies across a border.

    `spans`: characters whose tokens will be looked up. `marks`: the tokenizer's special tokens.
    """
    points = [
        [*at, *(edge for pair in pairs for edge in pair)]
        for at, pairs in zip(borders, spans, strict=True)
    ]
    whole = _encode(tokenizer, texts, points)
    inner = [
        [at for at in at_all if 0 < at < len(text)]
        for text, at_all in zip(texts, borders, strict=True)
    ]
    # What precedes a border is tokenised alone from the last special token on: nothing before that
    # changes its ids, and the ids of a prompt must not depend on what follows it.
    heads = [
        (row, at, _window(marks, texts[row], at)) for row, ats in enumerate(inner) for at in ats
    ]
    alone = _encode(tokenizer, [texts[row][begin:at] for row, at, begin in heads])
    cuts: list[list[int]] = [[] for _ in texts]
    for (row, at, begin), head in zip(heads, alone, strict=True):
        first, last = whole[row].span(begin, at)
        reaches = last > 0 and whole[row].ends[last - 1] == at
        if not reaches or whole[row].ids[first:last] != head.ids:
            cuts[row].append(at)
    return _with_pieces(tokenizer, texts, whole, cuts, points)


def _window(marks: re.Pattern[str], text: str, border: int) -> int:
    """The start of the last special token before a border; 0 where there is none."""
    for back in (200, 2000):
        begin = max(0, border - back)
        last = max(marks.finditer(text, begin, border), key=re.Match.start, default=None)
        # A mark that the window cuts in two is no mark.
        if last is not None and (last.start() > begin or begin == 0):
            return last.start()
    return 0


def _with_pieces(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    whole: Sequence[Tokens],
    cuts: Sequence[Sequence[int]],
    points: Sequence[Sequence[int]],
) -> list[Tokens]:
    """The tokens of texts, anew where a text is cut."""
    pieces = [
        (row, start, end)
        for row, at in enumerate(cuts)
        if at
        for start, end in pairwise([0, *at, len(texts[row])])
    ]
    inside = [[at - start for at in points[row] if start < at < end] for row, start, end in pieces]
    anew = _encode(tokenizer, [texts[row][start:end] for row, start, end in pieces], inside)
    results = list(whole)
    joined: dict[int, Tokens] = {}
    for (row, start, _), piece in zip(pieces, anew, strict=True):
        before = joined.get(row, Tokens([], [], []))
        joined[row] = results[row] = Tokens(
            [*before.ids, *piece.ids],
            [*before.starts, *(start + place for place in piece.starts)],
            [*before.ends, *(start + place for place in piece.ends)],
        )
    return results


def _encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    points: Sequence[Sequence[int]] | None = None,
) -> list[Tokens]:
    if not texts:
        return []
    if not tokenizer.is_fast:
        every = points or [()] * len(texts)
        return [_by_prefixes(tokenizer, text, at) for text, at in zip(texts, every, strict=True)]
    encoded = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False,
        return_offsets_mapping=True, verbose=False,
    )  # fmt: skip
    return [
        Tokens(list(ids), *_rising(offsets))
        for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


def _rising(offsets: Sequence[tuple[int, int]]) -> tuple[Places, Places]:
    """Starts and ends that never go back: tokens without characters stand where the last ended."""
    if not offsets:
        return (), ()
    starts, ends = zip(*offsets, strict=True)
    # Of all rows of a data set, every token is looked at: no loop of Python's here.
    if all(map(le, starts, starts[1:])) and all(map(le, ends, ends[1:])):
        return starts, ends
    firsts: list[int] = []
    lasts: list[int] = []
    first = last = 0
    for start, end in offsets:
        first = max(first, start)
        last = max(last, first, end)
        firsts.append(first)
        lasts.append(last)
    return firsts, lasts


def _by_prefixes(tokenizer: PreTrainedTokenizerBase, text: str, points: Sequence[int]) -> Tokens:
    """Without offsets of the tokenizer's own: a token lies between two points of the text.

    It belongs to the first point up to which the text alone gives it.
    """
    ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    starts: list[int] = []
    ends: list[int] = []

    def reach(count: int, start: int, end: int) -> None:
        more = count - len(starts)
        starts.extend([start] * more)
        ends.extend([end] * more)

    start = 0
    for point in sorted({at for at in points if 0 < at < len(text)}):
        part = tokenizer(text[:point], add_special_tokens=False, verbose=False)["input_ids"]
        pairs = enumerate(zip(part, ids, strict=False))
        same = next((i for i, (a, b) in pairs if a != b), min(len(part), len(ids)))
        reach(same, start, point)
        start = point
    reach(len(ids), start, len(text))
    return Tokens(ids, starts, ends)
