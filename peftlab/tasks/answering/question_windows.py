"""Questions with the windows of their contexts, as ids, and where the answers are in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from peftlab.errors import CheckFailed, ConfigError, DataError
from peftlab.tasks.encoding import token_ids
from peftlab.tasks.windows import Frame, frame_of, owners, pieces, shared_tokens, windows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LEAST_ROOM = 8
"""Tokens of context that a window has at least."""


@dataclass(frozen=True, slots=True)
class QuestionFrame:
    """The special tokens around question and context, and the one that stands for no answer.

    That is the classification token where the tokenizer puts one in front, else the last token of
    the row: the end of the text, which is added where the tokenizer does not. A decoder's first
    token sees nothing of the question, its last sees all.
    """

    frame: Frame
    null_in_front: bool

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> QuestionFrame:
        """As a tokenizer frames pairs; a line break parts them where it puts nothing between."""
        frame = frame_of(tokenizer, pair=True)
        if not frame.between:
            (line,) = token_ids(tokenizer, ["\n"])
            frame = replace(frame, between=tuple(line))
        cls_id = getattr(tokenizer, "cls_token_id", None)
        if cls_id is not None and cls_id in frame.before:
            return QuestionFrame(frame, null_in_front=True)
        if not frame.after:
            end = tokenizer.eos_token_id
            if not isinstance(end, int):
                raise CheckFailed(
                    f"{tokenizer.name_or_path}: the tokenizer has neither a classification token "
                    "in front nor an end of text, one of which must stand for no answer; set "
                    "tokenizer.eos_token."
                )
            frame = replace(frame, after=(end,))
        return QuestionFrame(frame, null_in_front=False)


@dataclass(frozen=True, slots=True)
class EncodedQuestions:
    """Columns of encoded windows, each window's whole length, and how many questions were cut."""

    columns: dict[str, list[Any]]
    lengths: list[int]
    cut: int


def encoded_questions(
    questions: Sequence[str],
    contexts: Sequence[str],
    answers: Sequence[Mapping[str, Any]] | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    stride: int | Literal["auto"],
    first_row: int,
) -> EncodedQuestions:
    """Windows with `char_starts`, `char_ends`, `owned` a token, and `row`, `null`.

    With `answers` also `start_positions` and `end_positions`: the tokens of the first answer, or
    the null position where it is not whole in the window. A question that would leave the context
    less than half of the room is cut.
    """
    around = QuestionFrame.of(tokenizer)
    frame = around.frame
    room = max_length - frame.size
    if room < 2 * _LEAST_ROOM:
        raise ConfigError(
            f"data.max_length is {max_length}, which leaves {max(room, 0)} tokens for a question "
            f"and its context; raise it to {frame.size + 2 * _LEAST_ROOM} at least."
        )
    names = ["input_ids", "char_starts", "char_ends", "owned", "row", "null"]
    names += ["token_type_ids"] if frame.types is not None else []
    names += [] if answers is None else ["start_positions", "end_positions"]
    found: dict[str, list[Any]] = {name: [] for name in names}
    lengths: list[int] = []
    cut = 0
    asked = [ids for ids, _ in pieces(tokenizer, [question.strip() for question in questions])]
    # A context stands in many rows; read once.
    unique = list(dict.fromkeys(contexts))
    read = dict(zip(unique, pieces(tokenizer, unique), strict=True))
    for number, (question, context) in enumerate(zip(asked, contexts, strict=True)):
        ids, characters = read[context]
        if not ids:
            raise DataError(f"the tokenizer makes no token of the context {context!r:.60}.")
        cut += len(question) > room // 2
        question = question[: room // 2]
        space = room - len(question)
        spans = windows(len(ids), space, shared_tokens(stride, space, auto=3))
        owner = owners(len(ids), spans)
        target = None if answers is None else _target(answers[number], characters)
        ahead = len(frame.before) + len(question) + len(frame.between)
        for index, (start, end) in enumerate(spans):
            row = frame.around(question, ids[start:end])
            size = len(row["input_ids"])
            null = 0 if around.null_in_front else size - 1
            before, behind = [0] * ahead, [0] * (size - ahead - (end - start))
            columns: dict[str, Any] = {
                **row,
                "char_starts": [*before, *(s for s, _ in characters[start:end]), *behind],
                "char_ends": [*before, *(e for _, e in characters[start:end]), *behind],
                "owned": [*before, *(int(o == index) for o in owner[start:end]), *behind],
                "row": first_row + number,
                "null": null,
            }
            if answers is not None:
                whole = target is not None and start <= target[0] and target[1] < end
                first, last = target if whole and target is not None else (0, 0)
                columns["start_positions"] = ahead + first - start if whole else null
                columns["end_positions"] = ahead + last - start if whole else null
            for name, value in columns.items():
                found[name].append(value)
            lengths.append(len(question) + len(ids) + frame.size)
    return EncodedQuestions(found, lengths, cut)


def _target(
    answers: Mapping[str, Any], characters: Sequence[tuple[int, int]]
) -> tuple[int, int] | None:
    """First and last token of the first answer; None for none, or for one without a token."""
    if not answers["text"]:
        return None
    start = int(answers["answer_start"][0])
    end = start + len(answers["text"][0])
    touched = [i for i, (a, b) in enumerate(characters) if a < end and b > start and b > a]
    return (touched[0], touched[-1]) if touched else None
