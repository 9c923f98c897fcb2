"""Questions and windows of their contexts as ids, with the positions of the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from peftlab.data.bad_rows import BadRows
from peftlab.errors import CheckFailed, ConfigError
from peftlab.tasks.encoding import token_ids
from peftlab.tasks.windows import Frame, frame_of, owners, pieces, shared_tokens, windows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LEAST_ROOM = 8
"""The fewest tokens of context that a window may have."""


@dataclass(frozen=True, slots=True)
class QuestionFrame:
    """The special tokens around question and context, and the one that means no answer (null).

    That is the classification token where the tokenizer puts one in front, else the row's last
    token: the end of text, which is added where the tokenizer adds none. A decoder's first token
    cannot attend to the question, its last attends to everything.
    """

    frame: Frame
    null_in_front: bool

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> QuestionFrame:
        """A tokenizer's frame of pairs, with a line break where it puts nothing between them."""
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
                    f"{tokenizer.name_or_path}: the tokenizer has neither a leading classification "
                    "token nor an end token, one of which represents no answer; set "
                    "tokenizer.eos_token."
                )
            frame = replace(frame, after=(end,))
        return QuestionFrame(frame, null_in_front=False)


@dataclass(frozen=True, slots=True)
class EncodedQuestions:
    """Columns of encoded windows, the uncut length of each, and the number of cut questions."""

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
    """Windows with `char_starts`, `char_ends` and `owned` per token, and `row` and `null`.

    With `answers` also `start_positions` and `end_positions`: the tokens of the first answer, or
    the null position where the window does not contain all of it. A question is cut to half of the
    room, so that the context gets the other half.
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
    encoded: dict[str, list[Any]] = {name: [] for name in names}
    lengths: list[int] = []
    cut = 0
    question_ids = [
        ids for ids, _ in pieces(tokenizer, [question.strip() for question in questions])
    ]
    # Many rows share a context; tokenise it once.
    unique = list(dict.fromkeys(contexts))
    read = dict(zip(unique, pieces(tokenizer, unique), strict=True))
    if bad := [at for at, context in enumerate(contexts) if not read[context][0]]:
        raise BadRows(
            {
                at: f"the tokenizer produces no token for the context {contexts[at]!r:.60}."
                for at in bad
            }
        )
    for number, (question, context) in enumerate(zip(question_ids, contexts, strict=True)):
        ids, characters = read[context]
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
                encoded[name].append(value)
            lengths.append(len(question) + len(ids) + frame.size)
    return EncodedQuestions(encoded, lengths, cut)


def _target(
    answers: Mapping[str, Any], characters: Sequence[tuple[int, int]]
) -> tuple[int, int] | None:
    """First and last token of the first answer; None without an answer or without its token."""
    if not answers["text"]:
        return None
    start = int(answers["answer_start"][0])
    end = start + len(answers["text"][0])
    touched = [i for i, (a, b) in enumerate(characters) if a < end and b > start and b > a]
    return (touched[0], touched[-1]) if touched else None
