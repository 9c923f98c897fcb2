"""What a model says of its input, whatever its head calls it."""

from __future__ import annotations

from typing import Any

import torch


def logits_of(outputs: Any) -> torch.Tensor:
    """A model's logits; of one that marks spans [B, T, 2], those of first and last tokens.

    Of other outputs the first, whatever it is.
    """
    if isinstance(outputs, tuple):
        return torch.as_tensor(outputs[0])
    if "start_logits" in outputs:
        return torch.stack([outputs["start_logits"], outputs["end_logits"]], dim=-1)
    return torch.as_tensor(next(iter(outputs.values())))
