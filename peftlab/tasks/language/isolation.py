"""A check on the model itself that packed rows do not attend to each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from peftlab.errors import CheckFailed
from peftlab.model.mode import evaluating

if TYPE_CHECKING:
    import datasets

_TOKENS = 16
_EXACT, _ROUNDED = 1e-4, 5e-2
_SHARE = 0.25
"""The largest share of the difference without borders: rounding is far below, a leak is 1."""


def check_packed(model: nn.Module | None, rows: datasets.Dataset) -> None:
    """`require_isolation` on the first two rows that are packed together, if any."""
    if model is None:
        return
    for row in rows:
        borders = [at for at, position in enumerate(row["position_ids"]) if position == 0 and at]
        if borders:
            ids, at = row["input_ids"], borders[0]
            end = borders[1] if len(borders) > 1 else len(ids)
            require_isolation(model, ids[:at][:_TOKENS], ids[at:end][:_TOKENS])
            return


def require_isolation(model: nn.Module, first: Sequence[int], second: Sequence[int]) -> None:
    """Raise `CheckFailed` unless a packed row has the logits of the row alone.

    `first` and `second` are ids of two rows of real data, a dozen tokens each. The logits of the
    second row packed after the first are compared with those of the row alone. The logits without
    borders tell rounding from a leak. A model on meta is not checked.
    """
    device = next(model.parameters()).device
    if device.type == "meta":
        return
    name = type(model).__name__
    ids = torch.tensor([[*first, *second]], device=device)
    own = [*range(len(first)), *range(len(second))]
    positions = torch.tensor([own], device=device)
    with evaluating(model), torch.no_grad():
        try:
            packed = _logits(model, len(second), input_ids=ids, position_ids=positions)
        except (TypeError, ValueError) as error:
            raise CheckFailed(_refusal(name, str(error).splitlines()[0])) from None
        alone = _logits(model, len(second), input_ids=ids[:, len(first) :])
        off = _difference(packed, alone)
        if off <= _EXACT:
            return
        if off <= _ROUNDED:
            joined = _logits(model, len(second), input_ids=ids)
            if off <= _SHARE * _difference(joined, alone):
                return
    raise CheckFailed(
        _refusal(
            name, f"the logits of a packed row differ from those of the row alone by {off:.1%}"
        )
    )


def _logits(model: nn.Module, last: int, **inputs: Any) -> torch.Tensor:
    logits: torch.Tensor = model(**inputs, use_cache=False).logits[0, -last:]
    return logits.float().cpu()


def _difference(one: torch.Tensor, alone: torch.Tensor) -> float:
    return float((one - alone).abs().max() / alone.abs().max().clamp_min(1e-12))


def _refusal(model: str, reason: str) -> str:
    return (
        f"data.packing cannot be used with {model}, whose packed rows attend to each other: "
        f"{reason}. Set data.packing=false (or, for plain text, task.packing=wrapped)."
    )
