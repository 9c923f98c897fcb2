"""Tied embeddings that train: PEFT keeps their tie where it knows them by name."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from peftlab.errors import CheckFailed
from peftlab.methods.low_rank.names import Rows
from peftlab.model.structure import input_embeddings

_KNOWN = ("embed_tokens", "lm_head")


def check_ties(model: nn.Module, saved: Sequence[str], rows: Rows | None) -> None:
    """`ensure_weight_tying` must have a tie to keep; PEFT ignores it otherwise.

    Raises `CheckFailed`.
    """
    key = "method.ensure_weight_tying is true, but"
    output: nn.Module | None = model.get_output_embeddings()  # type: ignore[operator]
    own = input_embeddings(model)
    if output is None or output.weight is not own.weight:
        raise CheckFailed(
            f"{key} {type(model).__name__} has no output embeddings tied to its input's; leave it "
            "out."
        )
    names = {module: name for name, module in model.named_modules()}
    pair = (names[own], names[output])
    ends = {name.rpartition(".")[2] for name in pair}
    if not ends <= set(_KNOWN):
        raise CheckFailed(
            f"{key} PEFT keeps ties of embed_tokens and lm_head alone, and here they are "
            f"{' and '.join(pair)}; leave it out."
        )
    named = set(rows) if isinstance(rows, dict) else set()
    if not (named.issuperset(pair) or any(name in saved for name in pair)):
        raise CheckFailed(
            f"{key} neither {pair[0]} nor {pair[1]} is in method.modules_to_save, and "
            "method.trainable_token_indices does not name both; leave it out."
        )
