"""What must hold for the trained part of every conversation, checked apart from what chose it.

Each text of a trained turn stands in its span, in order; no text of another turn and no header of a
role does; the span ends with end tokens; and the trained ids cover the span to the token.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from peftlab.tasks.encoding import IGNORED
from peftlab.tasks.language.chat.rendering import Renderer
from peftlab.tasks.language.chat.shown import Shown, spellings
from peftlab.tasks.language.chat.texts import Text
from peftlab.tasks.language.chat.tokens import Tokens
from peftlab.tasks.language.chat.turns import Spans, Turn


def broken(
    renderer: Renderer,
    shown: Shown,
    spans: Spans,
    tokens: Tokens,
    labels: Sequence[int],
) -> str | None:
    """What does not hold of a row with these labels [T] (an appended end token aside), or None."""
    due = [IGNORED] * len(tokens.ids)
    for number, turn in enumerate(spans.turns):
        last = number + 1 == len(spans.turns)
        reason = (
            _lacks(shown, turn)
            or _holds_others(renderer, shown, turn)
            or _unended(renderer, shown, turn, opened=last and spans.open)
            or _uncovered(shown, turn, tokens, labels, due)
        )
        if reason is not None:
            return f"with the chat template, {reason} turn {turn.message + 1}"
    if list(labels[: len(due)]) != due[: len(labels)]:
        return "with the chat template, a token outside of the answers would be trained"
    return None


def _lacks(shown: Shown, turn: Turn) -> str | None:
    """The texts of the turn, in order within each of its fields."""
    span = shown.text[turn.start : turn.end]
    reached: dict[int, int] = {}
    for text in (text for text in shown.texts if text.message == turn.message):
        at = _find(span, text, reached.get(text.whole, 0))
        if at is None:
            return f"{text.core!r:.40} is not in the trained part of"
        reached[text.whole] = at
    at = 0
    for _, value in (pair for pair in shown.values if pair[0] == turn.message):
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        at = span.find(str(value), at)
        if at < 0:
            return f"the argument {value!r:.40} is not in the trained part of"
    return None


def _find(span: str, text: Text, start: int) -> int | None:
    if (at := span.find(text.core, start)) >= 0:
        return at + len(text.core)
    found = [(span.find(form, start), len(form)) for form in spellings(text.core)]
    ends = [at + length for at, length in found if at >= 0]
    return min(ends) if ends else None


def _holds_others(renderer: Renderer, shown: Shown, turn: Turn) -> str | None:
    """Texts of other turns, and marks of a header outside of the turn's own texts."""
    own = shown.slots_of(turn.message)
    before = 0
    for slot in shown.slots:
        if slot.text.message == turn.message:
            continue
        if slot.start < turn.end and slot.end > turn.start:
            return f"{slot.text.core!r:.40} of another turn is in the trained part of"
        if slot.end <= turn.start:
            before = max(before, slot.end)
    first = min((slot.start for slot in own), default=turn.end)
    last = max((slot.end for slot in own), default=turn.start)
    header = {mark[0] for mark in renderer.end_marks.finditer(shown.text, before, turn.start)}
    header |= {mark[0] for mark in renderer.end_marks.finditer(renderer.header)}
    header -= {mark[0] for mark in renderer.end_marks.finditer(shown.text, last, turn.end)}
    # Between two of its own texts a turn may begin anew, as in channels: the model writes that.
    outside = [(turn.start, first), (last, turn.end)]
    if any(
        mark[0] in header
        for start, end in outside
        for mark in renderer.end_marks.finditer(shown.text, start, end)
    ):
        return "the header of a role is in the trained part of"
    return None


def _unended(renderer: Renderer, shown: Shown, turn: Turn, *, opened: bool) -> str | None:
    if opened:
        return None if renderer.tokenizer.eos_token_id is not None else "no end token ends"
    marks = renderer.end_marks.finditer(shown.text, turn.start, turn.end)
    ends = any(mark.end() == turn.end for mark in marks)
    return None if ends else "no end token ends"


def _uncovered(
    shown: Shown, turn: Turn, tokens: Tokens, labels: Sequence[int], due: list[int]
) -> str | None:
    """The tokens of the span are trained, and reach neither into its prompt nor beyond its end.

    Their ids are written into `due`, which are labels.
    """
    # Places never go back, so the tokens that touch the span lie between these two.
    low = bisect_right(tokens.ends, turn.start)
    high = bisect_left(tokens.starts, turn.end)
    stands = [tokens.starts[at] < tokens.ends[at] for at in range(low, high)]
    if True not in stands:
        return "no token stands for"
    first = low + stands.index(True)
    last = high - 1 - stands[::-1].index(True)
    begin = max(first, 1)  # Nothing comes before the first token, so it is never predicted.
    due[begin : last + 1] = tokens.ids[begin : last + 1]
    if labels[begin : last + 1] != due[begin : last + 1]:
        return "a token is not trained of"
    start, end = tokens.starts[first], tokens.ends[last]
    if shown.text[start : turn.start].strip() or shown.text[turn.end : end].strip():
        return "a token lies across the border of"
    return None
