"""The positions of assistant turns in a rendered conversation, and its token ids.

An assistant turn begins where its prompt ends: at the length of the conversation before it,
rendered with the template's generation prompt. It is checked that the whole conversation starts
with this prompt. The whole is tokenised so that its ids start with those of each prompt: training
and generation see the same prompts.
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
    """A trained turn in characters: the end of its prompt, start and end of the trained text."""

    prompt: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text. `borders`: the ends of its prompts, which no token may cross.

    `open`: no special token ends the last turn, so that the end token must follow.
    """

    text: str
    turns: tuple[Turn, ...]
    borders: tuple[int, ...]
    open: bool


@dataclass(frozen=True, slots=True)
class Tokens:
    """Ids [T] of a conversation, and the first position and end of each trained turn."""

    ids: list[int]
    turns: tuple[tuple[int, int], ...]


def render_turns(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], trained: Sequence[bool]
) -> Rendered:
    """A whole conversation; `trained`: whether each message is trained.

    Raises `Unrenderable` where the conversation does not start with a trained turn's prompt.
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
        marked = None if spans is None else spans[answers]
        answers += 1
        prompt = _prefix(tokenizer, text, messages[:index], prompt=True)
        if prompt is not None:
            borders.append(prompt)
        if not trained[index]:
            continue
        if prompt is None:
            raise Unrenderable(
                f"with the chat template, the whole conversation does not start with the prompt of "
                f"turn {index + 1}, so training and generation would see different prompts"
            )
        last = index + 1 == len(messages)
        whole = len(text) if last else _prefix(tokenizer, text, messages[: index + 1], prompt=False)
        if whole is None and marked is None:
            raise Unrenderable(
                "with the chat template, the whole conversation does not start with its first "
                f"{index + 1} turns, so the end of turn {index + 1} is unknown"
            )
        start = prompt if marked is None else max(prompt, marked[0])
        end = whole if marked is None else marked[1]
        assert end is not None
        end, ended = _turn_end(text, start, end, message["content"], marks)
        turns.append(Turn(prompt, start, end))
    return Rendered(text, tuple(turns), tuple(borders), open=not ended)


def _prefix(
    tokenizer: PreTrainedTokenizerBase, text: str, messages: Sequence[Message], *, prompt: bool
) -> int | None:
    """The length of the first messages in the text; None where it does not start with them."""
    if not messages:
        return None
    try:
        begin = render(tokenizer, messages, prompt=prompt)
    except Unrenderable:
        return None
    return len(begin) if text.startswith(begin) else None


def end_marks(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The tokens that can end a turn: special and added ones."""
    added = [str(token) for token in tokenizer.get_added_vocab()]
    return tuple(dict.fromkeys(mark for mark in [*tokenizer.all_special_tokens, *added] if mark))


def _turn_end(
    text: str, start: int, end: int, content: str, marks: Sequence[str]
) -> tuple[int, bool]:
    """The end of a turn after its end token, and whether it has one.

    White space between that token and the next heading belongs to the template, not to the turn.
    """
    content = content.strip()
    at = text.rfind(content, start, end) if content else start
    after = start if at < 0 else at + len(content)
    ends = [(at, mark) for mark in marks if (at := text.find(mark, after, end)) >= 0]
    if ends:
        first = min(at for at, _ in ends)
        return first + max(len(mark) for at, mark in ends if at == first), True
    # A template's generation block may exclude the end token.
    following = [mark for mark in marks if text.startswith(mark, end)]
    if following:
        return end + max(map(len, following)), True
    return end, False


def tokenise(tokenizer: PreTrainedTokenizerBase, rendered: Sequence[Rendered]) -> list[Tokens]:
    """Ids of conversations: those of the whole text, unless a token would cross a prompt's end.

    There the text after the prompt is tokenised separately, and so on from prompt to prompt.
    """
    if not rendered:
        return []
    cuts = [
        sorted({*row.borders, *(at for turn in row.turns for at in (turn.start, turn.end))})
        for row in rendered
    ]
    texts = [
        row.text[:cut]
        for row, row_cuts in zip(rendered, cuts, strict=True)
        for cut in dict.fromkeys([*row_cuts, len(row.text)])
    ]
    ids = iter(token_ids(tokenizer, texts))
    results = []
    for row, row_cuts in zip(rendered, cuts, strict=True):
        alone = {cut: next(ids) for cut in dict.fromkeys([*row_cuts, len(row.text)])}
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
    """The length of the common prefix of two sequences."""
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


def render_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> Rendered:
    """A conversation with its generation prompt, and the borders of training.

    Raises `Unrenderable`.
    """
    text = render(tokenizer, messages, prompt=True)
    check_rendered(text, messages)
    prompts = [
        _prefix(tokenizer, text, messages[:index], prompt=True)
        for index, message in enumerate(messages)
        if message["role"] == "assistant"
    ]
    borders = tuple(border for border in prompts if border is not None)
    return Rendered(text, (), borders, open=False)


def turn_end_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The token with which the template ends assistant turns, if it has one."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        row = render_turns(tokenizer, messages, [False, True])
    except Unrenderable:
        return ()
    (turn,) = row.turns
    marks = [mark for mark in end_marks(tokenizer) if row.text.endswith(mark, 0, turn.end)]
    if row.open or not marks:
        return ()
    end_id = tokenizer.convert_tokens_to_ids(max(marks, key=len))
    return (end_id,) if isinstance(end_id, int) else ()
