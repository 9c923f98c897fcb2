"""Token ids of whole texts or pairs, with the tokenizer's special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from peftlab.data.bad_rows import BadRows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenise(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    max_length: int,
) -> tuple[dict[str, Any], list[int]]:
    """Columns of ids cut to `max_length`, and each row's uncut length.

    Raises `BadRows` for texts without a token.
    """

    def call(indices: Sequence[int], **options: Any) -> dict[str, list[list[int]]]:
        first = [texts[index] for index in indices]
        second = None if pairs is None else [pairs[index] for index in indices]
        encoded = tokenizer(first, second, verbose=False, **options)
        return {name: list(map(list, values)) for name, values in encoded.items()}

    def redo(indices: list[int], **options: Any) -> None:
        if indices:
            for name, values in call(indices, **options).items():
                if name not in columns:
                    continue
                for index, value in zip(indices, values, strict=True):
                    columns[name][index] = value

    columns: dict[str, Any] = call(range(len(texts)))
    # Models that pool at </s> (T5) need the same number of them in every row. A text that spells
    # one out is tokenised as plain characters.
    ends = tokenizer.eos_token_id
    plain = {}
    if isinstance(ends, int) and columns["input_ids"] and columns["input_ids"][0][-1:] == [ends]:
        expected = 1 + (pairs is not None and _pair_ends(tokenizer, ends))
        spelt = [i for i, ids in enumerate(columns["input_ids"]) if ids.count(ends) != expected]
        redo(spelt, split_special_tokens=True)
        plain = dict.fromkeys(spelt)
    if not _has_token_types(tokenizer, pairs is not None):
        columns.pop("token_type_ids", None)
    lengths = [len(ids) for ids in columns["input_ids"]]
    long = [index for index, length in enumerate(lengths) if length > max_length]
    cut = {"truncation": True, "max_length": max_length}
    redo([index for index in long if index not in plain], **cut)
    redo([index for index in long if index in plain], **cut, split_special_tokens=True)
    if min(map(len, columns["input_ids"])) == 0:
        raise BadRows(
            {
                at: f"the tokenizer produces no token for the text {text!r:.60}."
                for at, (text, ids) in enumerate(zip(texts, columns["input_ids"], strict=True))
                if not ids
            }
        )
    return columns, lengths


def _has_token_types(tokenizer: PreTrainedTokenizerBase, pairs: bool) -> bool:
    """Whether any token type is set: generic tokenizers return zeros for every model."""
    types = tokenizer("a", "a" if pairs else None).get("token_type_ids", [])
    return any(types)


def _pair_ends(tokenizer: PreTrainedTokenizerBase, ends: int) -> int:
    return int(tokenizer("a", "a")["input_ids"].count(ends)) - 1
