"""An encoded source and target as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from peftlab.tasks.causal_preview import bracketed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def shown_pair(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """`text`, the source's, and `target`, with brackets around it: all of it is trained.

    `tokens` and `target_tokens` say how many there are, `references` how many texts are right.
    """
    ids, labels = list(row["input_ids"]), list(row["labels"])
    found: dict[str, Any] = {
        "tokens": len(ids),
        "text": tokenizer.decode(ids),
        "target": bracketed(str(tokenizer.decode(labels))),
        "target_tokens": len(labels),
    }
    if len(row["references"]) > 1:
        found["references"] = len(row["references"])
    return found
