"""The one writer of `requires_grad`. Methods say which names train; this makes it so."""

from __future__ import annotations

from collections.abc import Iterable, Set

import torch
from torch import nn

from peftlab.errors import CheckFailed


def freeze(model: nn.Module, trainable: Set[str]) -> None:
    """Train exactly the named parameters, in fp32, and no other.

    Names are those of `named_parameters()`. Frozen parameters keep their dtype; a parameter that is
    widened stays the same object, so ties hold. Raises `CheckFailed` where nothing would train or a
    name is not the model's.
    """
    parameters = dict(model.named_parameters())
    unknown = sorted(trainable - parameters.keys())
    if unknown:
        raise CheckFailed(
            f"{type(model).__name__} has no parameter named {', '.join(unknown[:3])}."
        )
    if not trainable:
        raise CheckFailed(
            f"nothing of {type(model).__name__} would train; choose another method or target."
        )
    for name, parameter in parameters.items():
        trains = name in trainable
        if trains and not parameter.is_floating_point():
            raise CheckFailed(
                f"{name} is {parameter.dtype} and cannot be trained; leave it frozen."
            )
        if trains and parameter.dtype is not torch.float32:
            parameter.data = parameter.data.float()
        parameter.requires_grad_(trains)
        if not trains:
            parameter.grad = None


def freeze_these(model: nn.Module, names: Iterable[str]) -> None:
    """Freeze the named parameters and leave the others as they are."""
    frozen = set(names)
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
