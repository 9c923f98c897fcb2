"""Where the assistant's turns begin and end in a rendered conversation, and its token ids.

A turn of the assistant begins where the prompt for it ends: at the length of the conversation
before it, rendered with the template's generation prompt. That this text is how the whole
conversation begins is checked, not assumed. The ids of the whole are made so that the ids of each
such prompt are how they begin: what is trained is what is asked later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peftlab.tasks.encoding import token_ids
from peftlab.tasks.language.chat.template import (
    Message,
    Unrenderable,
    check_rendered,
    generation_spans,
    render,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Turn:
    """A trained turn, in characters of the text: `prompt` ends, what is trained starts and ends."""

    prompt: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text. `borders`: ends of its prompts, at which tokens are kept apart.

    `open`: no token of its own ends the last turn, so that the end token must follow.
    """

    text: str
    turns: tuple[Turn, ...]
    borders: tuple[int, ...]
    open: bool


@dataclass(frozen=True, slots=True)
class Tokens:
    """Ids [T] of a conversation, and of each trained turn its first position and its end."""

    ids: list[int]
    turns: tuple[tuple[int, int], ...]


def render_turns(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], trained: Sequence[bool]
) -> Rendered:
    """A whole conversation. `trained` says of each message whether the model learns to say it.

    Raises `Unrenderable` where a prompt of a trained turn is not how the conversation begins.
    """
    text = render(tokenizer, messages, prompt=False)
    check_rendered(text, messages)
    marks = end_marks(tokenizer)
    spans = generation_spans(tokenizer, messages)
    turns: list[Turn] = []
    borders: list[int] = []
    ended, answers = True, 0
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        said = None if spans is None else spans[answers]
        answers += 1
        prompt = _prefix(tokenizer, text, messages[:index], prompt=True)
        if prompt is not None:
            borders.append(prompt)
        if not trained[index]:
            continue
        if prompt is None:
            raise Unrenderable(
                f"with the chat template, the prompt for turn {index + 1} is not how the whole "
                "conversation begins, so that a model trained on it would be asked otherwise"
            )
        last = index + 1 == len(messages)
        whole = len(text) if last else _prefix(tokenizer, text, messages[: index + 1], prompt=False)
        if whole is None and said is None:
            raise Unrenderable(
                f"with the chat template, the conversation up to turn {index + 1} is not how the "
                "whole one begins, so that the end of that turn is not known"
            )
        start = prompt if said is None else max(prompt, said[0])
        end = whole if said is None else said[1]
        assert end is not None
        end, ended = _turn_end(text, start, end, message["content"], marks)
        turns.append(Turn(prompt, start, end))
    return Rendered(text, tuple(turns), tuple(borders), open=not ended)


def _prefix(
    tokenizer: PreTrainedTokenizerBase, text: str, messages: Sequence[Message], *, prompt: bool
) -> int | None:
    """How much of the text the first messages are; None where it does not begin with them."""
    if not messages:
        return None
    try:
        begin = render(tokenizer, messages, prompt=prompt)
    except Unrenderable:
        return None
    return len(begin) if text.startswith(begin) else None


def end_marks(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The tokens that can end a turn: special ones, and whatever was added to the vocabulary."""
    added = [str(token) for token in tokenizer.get_added_vocab()]
    return tuple(dict.fromkeys(mark for mark in [*tokenizer.all_special_tokens, *added] if mark))


def _turn_end(
    text: str, start: int, end: int, content: str, marks: Sequence[str]
) -> tuple[int, bool]:
    """The end of a turn behind the token that ends it, and whether there is such a token.

    White space between that token and the next heading is the template's, not the model's to say.
    """
    said = content.strip()
    at = text.rfind(said, start, end) if said else start
    after = start if at < 0 else at + len(said)
    found = [(at, mark) for mark in marks if (at := text.find(mark, after, end)) >= 0]
    if found:
        first = min(at for at, _ in found)
        return first + max(len(mark) for at, mark in found if at == first), True
    # A template's own mark of what is generated may leave the end token out.
    following = [mark for mark in marks if text.startswith(mark, end)]
    if following:
        return end + max(map(len, following)), True
    return end, False


def tokenise(tokenizer: PreTrainedTokenizerBase, rendered: Sequence[Rendered]) -> list[Tokens]:
    """Ids of conversations: the whole text's, unless a token would lie across a prompt's end.

    There the text after the prompt is tokenised apart, and so on from prompt to prompt.
    """
    if not rendered:
        return []
    cuts = [
        sorted({*row.borders, *(at for turn in row.turns for at in (turn.start, turn.end))})
        for row in rendered
    ]
    texts = [
        row.text[:cut]
        for row, found in zip(rendered, cuts, strict=True)
        for cut in dict.fromkeys([*found, len(row.text)])
    ]
    ids = iter(token_ids(tokenizer, texts))
    results = []
    for row, found in zip(rendered, cuts, strict=True):
        alone = {cut: next(ids) for cut in dict.fromkeys([*found, len(row.text)])}
        results.append(_tokens(tokenizer, row, alone))
    return results


def _tokens(
    tokenizer: PreTrainedTokenizerBase, row: Rendered, alone: dict[int, list[int]]
) -> Tokens:
    joined: list[int] = []
    done = 0
    upto: dict[int, list[int]] = {}
    borders = [border for border in row.borders if border < len(row.text)]

    def grown(cut: int) -> list[int]:
        if alone[cut][: len(joined)] == joined:
            return alone[cut]
        return joined + token_ids(tokenizer, [row.text[done:cut]])[0]

    for cut in sorted(alone):
        upto[cut] = grown(cut)
        if cut in borders:
            joined, done = upto[cut], cut
    whole = upto[len(row.text)]
    turns = tuple(
        (
            max(_common(upto[turn.prompt], whole), _common(upto[turn.start], whole)),
            _common(upto[turn.end], whole),
        )
        for turn in row.turns
    )
    return Tokens(whole, turns)


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many ids two sequences begin with alike."""
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


def render_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> Rendered:
    """A conversation up to where the assistant goes on, with the borders that training saw.

    Raises `Unrenderable`.
    """
    text = render(tokenizer, messages, prompt=True)
    check_rendered(text, messages)
    found = [
        _prefix(tokenizer, text, messages[:index], prompt=True)
        for index, message in enumerate(messages)
        if message["role"] == "assistant"
    ]
    borders = tuple(border for border in found if border is not None)
    return Rendered(text, (), borders, open=False)


def turn_end_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The token with which the template ends a turn of the assistant, if it has one."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        row = render_turns(tokenizer, messages, [False, True])
    except Unrenderable:
        return ()
    (turn,) = row.turns
    marks = [mark for mark in end_marks(tokenizer) if row.text.endswith(mark, 0, turn.end)]
    if row.open or not marks:
        return ()
    found = tokenizer.convert_tokens_to_ids(max(marks, key=len))
    return (found,) if isinstance(found, int) else ()
