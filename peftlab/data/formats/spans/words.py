"""Words of a text whose spans are labelled, and a tag for each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

Span = tuple[int, int, str]
"""First character, the character after the last one, and label."""


@cache
def _word() -> Any:
    import regex

    # Scripts without spaces between words: a word a character, whatever is labelled.
    alone = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
    joined = rf"[[\p{{L}}\p{{M}}\p{{N}}_]--{alone}]"
    return regex.compile(rf"{alone}\p{{M}}*|{joined}+|\S", regex.V1)


def words_of(text: str) -> list[tuple[int, int]]:
    """Where the words of a text are: runs of letters and digits, and each other character alone.

    The same for every text, so that a word's form says nothing of the spans of its row.
    """
    return [match.span() for match in _word().finditer(text)]


def tagged_words(text: str, spans: Iterable[Span]) -> tuple[list[str], list[str]]:
    """The words, cut where a span begins or ends inside one, and their tags: B-, I- or O.

    Raises `ValueError`, with the cause, for spans outside the text, empty ones and overlapping
    ones. White space at the ends of a span is no part of it.
    """
    ordered = sorted(_trimmed(text, span) for span in spans)
    for before, after in pairwise(ordered):
        if after[0] < before[1]:
            raise ValueError(
                f"the spans {_shown(text, before)} and {_shown(text, after)} overlap, and a word "
                "has one tag; keep one of them"
            )
    words: list[str] = []
    tags: list[str] = []
    waiting = list(reversed(ordered))
    for start, end in words_of(text):
        for first, last in _cut(start, end, ordered):
            while waiting and waiting[-1][1] <= first:
                waiting.pop()
            words.append(text[first:last])
            if waiting and waiting[-1][0] <= first:
                tags.append(f"{'B' if waiting[-1][0] == first else 'I'}-{waiting[-1][2]}")
            else:
                tags.append("O")
    return words, tags


def _trimmed(text: str, span: Span) -> Span:
    start, end, label = span
    if not 0 <= start < end <= len(text):
        raise ValueError(
            f"the span {start} to {end} ({label!r:.40}) is outside the {len(text)} characters of "
            "the text, or empty"
        )
    marked = text[start:end]
    if not marked.strip():
        raise ValueError(f"the span {start} to {end} ({label!r:.40}) marks white space only")
    start += len(marked) - len(marked.lstrip())
    return start, start + len(marked.strip()), label


def _cut(start: int, end: int, spans: Sequence[Span]) -> Iterable[tuple[int, int]]:
    """A word's parts between the ends of spans that lie inside it."""
    inside = {edge for first, last, _ in spans for edge in (first, last) if start < edge < end}
    edges = [start, *sorted(inside), end]
    return pairwise(edges)


def _shown(text: str, span: Span) -> str:
    return f"{text[span[0] : span[1]]!r:.40} ({span[2]})"
