"""Marker tokens around two entities, and rows that contain them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from peftlab.errors import CheckFailed, ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]

_SPARE = (
    r"\[unused(\d+)\]",
    r"<unused_?(\d+)>",
    r"<extra_id_(\d+)>",
    r"<\|reserved_special_token_(\d+)\|>",
    r"<\|?reserved_?(\d+)\|?>",
    r"<SPECIAL_(\d+)>",
)
_PUNCTUATION = "@#*^~|=+"
_NEEDED = 4


@dataclass(frozen=True, slots=True)
class Markers:
    """Ids before and after the first entity, and before and after the second.

    `trained`: they are spare tokens without pretrained meaning, so their embeddings train too.
    """

    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    trained: bool

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        kind: Literal["auto", "spare", "punctuation"],
    ) -> Self:
        """Choose markers from a tokenizer's vocabulary.

        Without four spare tokens, auto takes `@` around the first entity and `#` around the second,
        which work as well as dedicated tokens (W. Zhou and M. Chen, An Improved Baseline for
        Sentence-level Relation Extraction, 2022) and leave the embeddings frozen.
        Raises `ConfigError` where the vocabulary lacks this kind.
        """
        spare = [] if kind == "punctuation" else _spare(tokenizer)
        if len(spare) >= _NEEDED:
            chosen = spare[:_NEEDED]
            # T5 was pretrained on its spare tokens as sentinels. Its stacks also read a separate
            # embedding table, which PEFT's trained token rows do not reach.
            trained = not chosen[0][0].startswith("<extra_id_")
            return cls(tuple(token for token, _ in chosen), tuple(i for _, i in chosen), trained)
        if kind == "spare":
            raise ConfigError(
                f"task.markers is spare, but the vocabulary of {tokenizer.name_or_path} has "
                f"{len(spare)} spare tokens ([unused0], <extra_id_0>, ...) of the {_NEEDED} "
                "needed; set it to punctuation."
            )
        signs = _punctuation(tokenizer)
        if len(signs) < 2:
            raise ConfigError(
                f"the vocabulary of {tokenizer.name_or_path} has neither {_NEEDED} spare tokens "
                f"nor two of the signs {' '.join(_PUNCTUATION)} to mark entities with; choose "
                "another model."
            )
        (first, a), (second, b) = signs[:2]
        return cls((first, first, second, second), (a, a, b, b), False)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        return cls(tuple(state["tokens"]), tuple(state["ids"]), bool(state["trained"]))

    def state(self) -> dict[str, Any]:
        return {"tokens": list(self.tokens), "ids": list(self.ids), "trained": self.trained}

    def check(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise `CheckFailed` where a tokenizer has other tokens under these ids."""
        tokens = tuple(tokenizer.convert_ids_to_tokens(list(self.ids)))
        if tokens != self.tokens:
            raise CheckFailed(
                f"the run marked entities with {' '.join(self.tokens)}, but for these ids the "
                f"tokenizer of {tokenizer.name_or_path} has {' '.join(map(str, tokens))}."
            )

    def around(
        self, ids: Sequence[int], places: Sequence[Span], entities: tuple[Span, Span], room: int
    ) -> tuple[list[int], tuple[int, int]]:
        """Ids with the markers inserted, at most `room`, and the positions of the opening markers.

        `places` are the character spans of the ids, `entities` those of the two entities. Long rows
        are cut far from the entities: at the ends, then between them. Raises `DataError` where an
        entity has no token, or where both with their markers do not fit.
        """
        spans = [_tokens_of(places, entity) for entity in entities]
        keep = _kept(len(ids), spans, room - _NEEDED)
        before: dict[int, list[int]] = {}
        after: dict[int, list[int]] = {}
        for (start, stop), opening, closing in zip(
            spans, self.ids[::2], self.ids[1::2], strict=True
        ):
            before.setdefault(start, []).append(opening)
            after.setdefault(stop - 1, []).insert(0, closing)
        row: list[int] = []
        starts: dict[tuple[int, int], int] = {}
        for at in keep:
            for opening in before.get(at, ()):
                starts.setdefault((at, opening), len(row))
                row.append(opening)
            row.append(ids[at])
            row += after.get(at, ())
        first, second = (
            starts[start, opening] for (start, _), opening in zip(spans, self.ids[::2], strict=True)
        )
        return row, (first, second)


def _spare(tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, int]]:
    """The vocabulary's spare tokens of the first pattern that matches any, in numeric order."""
    vocabulary = tokenizer.get_vocab()
    for pattern in _SPARE:
        by_number = {
            int(match[1]): (token, index)
            for token, index in vocabulary.items()
            if (match := re.fullmatch(pattern, token))
        }
        if by_number:
            return [by_number[number] for number in sorted(by_number)]
    return []


def _punctuation(tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, int]]:
    """Punctuation signs that are single tokens of the vocabulary."""
    vocabulary = tokenizer.get_vocab()
    return [
        (sign, vocabulary[sign])
        for sign in _PUNCTUATION
        if vocabulary.get(sign) not in (None, tokenizer.unk_token_id)
    ]


def _tokens_of(places: Sequence[Span], entity: Span) -> Span:
    """The range of tokens that overlap an entity's characters."""
    touched = [
        at for at, (start, end) in enumerate(places) if start < entity[1] and end > entity[0]
        and start < end
    ]  # fmt: skip
    if not touched:
        raise DataError("the tokenizer produces no token for an entity")
    return touched[0], touched[-1] + 1


def _kept(count: int, spans: Sequence[Span], room: int) -> list[int]:
    """The tokens to keep: all, or both entities and the tokens nearest to them."""
    if count <= room:
        return list(range(count))
    held = sorted({at for start, stop in spans for at in range(start, stop)})
    if len(held) > room:
        raise DataError(
            f"its entities take {len(held)} tokens and their markers {_NEEDED}, which does not fit "
            "into data.max_length"
        )
    low, high = held[0], held[-1] + 1
    if high - low <= room:
        left = max(0, min(low - (room - (high - low)) // 2, count - room))
        return list(range(left, left + room))
    distance = {
        at: min(max(start - at, at - stop + 1, 0) for start, stop in spans) for at in range(count)
    }
    return sorted(sorted(distance, key=lambda at: (distance[at], at))[:room])
