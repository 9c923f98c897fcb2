"""Previews of encoded rows of language models."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

from peftlab.tasks.task import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OPEN, _CLOSE, _BORDER = "\u27e6", "\u27e7", " \u2502 "


def shown_mask(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """`text` with brackets around trained tokens and borders between packed rows, and `trained`.

    Also the counts `tokens` and `trained_tokens`, and `packed_rows` where rows are packed.
    """
    ids, labels = list(row["input_ids"]), list(row["labels"])
    positions = row.get("position_ids")
    starts = [0, len(ids)]
    if positions is not None:
        starts = [at for at, position in enumerate(positions) if position == 0] + [len(ids)]
    parts = []
    for start, end in pairwise(starts):
        text = ""
        for trained, run in groupby(range(start, end), lambda at: labels[at] != IGNORED):
            piece = str(tokenizer.decode([ids[at] for at in run]))
            text += bracketed(piece) if trained else piece
        parts.append(text)
    shown: dict[str, Any] = {
        "tokens": len(ids),
        "text": _BORDER.join(parts),
        "trained": tokenizer.decode([label for label in labels if label != IGNORED]),
        "trained_tokens": sum(label != IGNORED for label in labels),
    }
    if positions is not None:
        shown["packed_rows"] = len(parts)
    return shown


def bracketed(text: str) -> str:
    """Trained text in brackets."""
    return f"{_OPEN}{text}{_CLOSE}"


def shown_pair(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """`text` of the source, and `target` in brackets, as all of it is trained.

    Also the counts `tokens` and `target_tokens`, and `references` where there are several.
    """
    ids, labels = list(row["input_ids"]), list(row["labels"])
    shown: dict[str, Any] = {
        "tokens": len(ids),
        "text": tokenizer.decode(ids),
        "target": bracketed(str(tokenizer.decode(labels))),
        "target_tokens": len(labels),
    }
    if len(row["references"]) > 1:
        shown["references"] = len(row["references"])
    return shown
