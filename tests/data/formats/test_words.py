"""Words and tags of spans say where the spans are, to the character."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from peftlab.data.formats.spans.words import Span, tagged_words


@st.composite
def marked_texts(draw: st.DrawFn) -> tuple[str, list[Span]]:
    """A text with spans that do not overlap and mark more than white space."""
    text = draw(st.text(st.sampled_from("ab_ 9é\t東カー.'-😀\u0301ไ"), max_size=30))
    edges = sorted(draw(st.sets(st.integers(0, len(text)), max_size=8)))
    spans = [(start, end, draw(st.sampled_from(["X", "Y-Z"])))
             for start, end in zip(edges[::2], edges[1::2], strict=False)]  # fmt: skip
    return text, [span for span in spans if text[span[0] : span[1]].strip()]


def spans_of(text: str, words: list[str], tags: list[str]) -> list[Span]:
    """The spans that tags mark, found by looking for the words one after the other."""
    spans: list[Span] = []
    at = 0
    for word, tag in zip(words, tags, strict=True):
        at = text.index(word, at)
        if tag.startswith("B-"):
            spans.append((at, at + len(word), tag[2:]))
        elif tag.startswith("I-"):
            start, _, label = spans.pop()
            assert label == tag[2:]
            spans.append((start, at + len(word), label))
        at += len(word)
    return spans


@given(marked_texts())
def test_spans_come_back(case: tuple[str, list[Span]]) -> None:
    text, spans = case
    words, tags = tagged_words(text, reversed(spans))
    assert "".join(words) == "".join(text.split())
    trimmed = []
    for start, end, label in spans:
        marked = text[start:end]
        first = start + len(marked) - len(marked.lstrip())
        trimmed.append((first, first + len(marked.strip()), label))
    assert spans_of(text, words, tags) == trimmed
