"""The positions of trained turns in a rendered conversation.

A turn begins where its prompt ends: at the length of the conversation before it, rendered with the
template's generation prompt. It ends after the last end token that the template writes behind it,
seen where the conversation is rendered up to the turn.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from peftlab.tasks.language.chat.conversation import Chat
from peftlab.tasks.language.chat.omissions import ShownOtherwise, check_shown
from peftlab.tasks.language.chat.rendering import Renderer, common_prefix
from peftlab.tasks.language.chat.shown import Shown, show
from peftlab.tasks.language.chat.template import Unrenderable
from peftlab.tasks.language.chat.texts import THOUGHT_TAGS
from peftlab.tasks.language.chat.variants import Variant

_TAGS = re.compile("|".join(map(re.escape, THOUGHT_TAGS)))
_LONGEST_MARK = 60  # characters
_SAYS_NOTHING = re.compile("|".join([r"\s+", *map(re.escape, THOUGHT_TAGS)]))


@dataclass(frozen=True, slots=True)
class Turn:
    """A trained message and its trained text in characters."""

    message: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Spans:
    """The trained turns of a rendered conversation.

    `borders`: the ends of its prompts, which no token may cross. `open`: the template ends the last
    turn without an end token, so that the tokenizer's must follow. `bent`: a prompt differs from
    the conversation by white space or thought tags.
    """

    turns: tuple[Turn, ...]
    borders: tuple[int, ...]
    open: bool
    bent: bool = False


def spans_of(
    renderer: Renderer, chat: Chat, *, prompt: bool = False, first: Variant | None = None
) -> tuple[Shown, Spans]:
    """A rendered conversation and its trained turns; `prompt`: with its generation prompt.

    `first` is the way of handing it over that is tried first. Raises `ShownOtherwise`, and
    `Unrenderable` where the template does not render it, or where a trained turn is unknown.
    """
    shown = show(renderer, chat, prompt=prompt, first=first)
    last = len(chat.messages) - 1
    check_shown(renderer, shown, prompt=prompt)
    turns: list[Turn] = []
    borders: list[int] = []
    opened = bent = False
    marked = _generation_starts(renderer, shown)
    for index, message in enumerate(chat.messages):
        if message["role"] != "assistant" or index == 0:
            continue
        try:
            head = renderer.render(chat, shown.messages[:index], prompt=True)
        except Unrenderable:
            if chat.trained[index]:
                raise
            continue
        if shown.text.startswith(head):
            borders.append(len(head))
        if not chat.trained[index]:
            continue
        whole = shown.text
        if index < last:
            whole = renderer.render(chat, shown.messages[: index + 1], prompt=False)
        start = _start(renderer, shown, index, head, len(whole))
        bent = bent or not shown.text.startswith(head)
        ends = _ends(renderer, shown, index, start, whole)
        if index < last:
            ends = [end for end in ends if shown.text.startswith(whole[:end])]
            if not ends:
                raise ShownOtherwise
        end, ended = (ends[-1], True) if ends else (len(whole), False)
        if ended:
            opened = False
        elif renderer.tokenizer.eos_token_id is None:
            raise Unrenderable(
                f"the chat template ends turn {index + 1} without an end token, and the tokenizer "
                "has none"
            )
        else:
            opened = True
        begun = min((slot.start for slot in shown.slots_of(index)), default=end)
        narrowed = [at for at in marked if start <= at <= begun]
        turns.append(Turn(index, narrowed[0] if narrowed else start, end))
    if not turns and not prompt:
        said = max((slot.end for slot in shown.slots), default=0)
        opened = not renderer.end_marks.search(shown.text, said)
    return shown, Spans(tuple(turns), tuple(sorted(set(borders))), opened, bent)


def _generation_starts(renderer: Renderer, shown: Shown) -> list[int]:
    if not renderer.marks_generation:
        return []
    return [start for start, _ in renderer.generation_spans(shown.chat, shown.messages)]


def _start(renderer: Renderer, shown: Shown, index: int, prompt: str, end: int) -> int:
    """The end of a turn's prompt in the conversation.

    Where the two differ by white space or thought tags only, the end of what they share. The same
    where the template writes the turn as the rest of the one before it, without a header.
    """
    text = shown.text
    first = _first_of_its_own(renderer, shown, index, end)
    if text.startswith(prompt):
        return _behind_header(renderer, text, len(prompt), first)
    spoken = _spoken_end(renderer, prompt, text)
    if spoken is not None and spoken <= (first if shown.slots_of(index) else end):
        return spoken
    shared = _before_a_mark(renderer, prompt, text, common_prefix(prompt, text))
    if shared <= first and shown.chat.messages[index - 1]["role"] in ("assistant", "tool"):
        header = _header(renderer, shown, index, prompt)
        ended = renderer.end_marks.sub("", prompt[shared:].removesuffix(header))
        start = _behind_header(renderer, text, shared, first)
        if says_nothing(ended) and says_nothing(text[start:first]):
            return start
    if index < len(shown.chat.messages) - 1:
        raise ShownOtherwise
    raise Unrenderable(
        f"with the chat template, the whole conversation does not start with the prompt of turn "
        f"{index + 1}, so training and generation would see different prompts"
    )


def _spoken_end(renderer: Renderer, prompt: str, text: str) -> int | None:
    """Where a prompt ends in a text that differs by white space and thought tags; else None."""
    said = _SAYS_NOTHING.sub("", prompt)
    places: list[int] = []
    at = 0
    for silence in _SAYS_NOTHING.finditer(text):
        places.extend(range(at, silence.start()))
        at = silence.end()
        if len(places) >= len(said):
            break
    else:
        places.extend(range(at, len(text)))
    spoken = places[: len(said)]
    if not said or "".join(text[place] for place in spoken) != said:
        return None
    after = spoken[-1] + 1
    silent = prompt[_last_said(prompt) :]
    return after + _before_a_mark(
        renderer, silent, text[after:], common_prefix(silent, text[after:])
    )


def _last_said(prompt: str) -> int:
    """The end of a prompt without the white space and thought tags that follow."""
    end = 0
    at = 0
    for silence in _SAYS_NOTHING.finditer(prompt):
        end = silence.start() if silence.start() > at else end
        at = silence.end()
    return len(prompt) if at < len(prompt) else end


def _first_of_its_own(renderer: Renderer, shown: Shown, index: int, end: int) -> int:
    """The start of a turn's first text; of a turn without texts that of its end tokens."""
    slots = shown.slots_of(index)
    if slots:
        return min(slot.start for slot in slots)
    before = max((slot.end for slot in shown.slots if slot.text.message < index), default=0)
    first = end
    for mark in reversed(list(renderer.end_marks.finditer(shown.text, before, end))):
        if shown.text[mark.end() : first].strip():
            break
        first = mark.start()
    return first


def _behind_header(renderer: Renderer, text: str, start: int, first: int) -> int:
    """The end of a header that stands at the start although no prompt wrote it.

    That header is not for the model to learn.
    """
    ahead = text[start:first]
    if says_nothing(ahead):
        return start
    if renderer.header:
        return start + len(renderer.header) if ahead.startswith(renderer.header) else start
    after = _last_said(ahead)
    return start + after + len(ahead[after:]) - len(ahead[after:].lstrip())


def _header(renderer: Renderer, shown: Shown, index: int, prompt: str) -> str:
    """The generation prompt alone."""
    before = renderer.render(shown.chat, shown.messages[:index], prompt=False)
    return prompt[len(before) :] if prompt.startswith(before) else ""


def _before_a_mark(renderer: Renderer, prompt: str, text: str, shared: int) -> int:
    """The end of what two texts share, moved to the start of a mark of either that lies across."""
    for side in (prompt, text):
        for pattern in (renderer.end_marks, _TAGS):
            for mark in pattern.finditer(side, max(0, shared - _LONGEST_MARK)):
                if mark.start() >= shared:
                    break
                if mark.end() > shared:
                    return mark.start()
    return shared


def says_nothing(text: str) -> bool:
    """Whether a text is white space and thought tags alone."""
    return not _SAYS_NOTHING.sub("", text)


def _ends(renderer: Renderer, shown: Shown, index: int, start: int, whole: str) -> list[int]:
    """The ends of the end tokens after a turn's last text.

    White space between the last of them and the next heading belongs to the template, not to the
    turn.
    """
    after = start
    written = ""  # by the template, between the turn's texts
    for slot in sorted(shown.slots_of(index), key=lambda slot: slot.start):
        written += whole[after : slot.start]
        after = max(after, slot.end)
    special = renderer.tokenizer.all_special_tokens
    return [
        mark.end()
        for mark in renderer.end_marks.finditer(whole, after)
        if mark[0] in special or not _closes_inside(mark[0], written)
    ]


def _closes_inside(mark: str, written: str) -> bool:
    """Whether a mark closes what the template has opened in the turn, such as `</tool_call>`."""
    return mark.startswith("</") and f"<{mark[2:]}" in written
