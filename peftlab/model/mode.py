"""Training and evaluation mode: of a model for a while, of single modules for good."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every module's own mode is restored after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def pin_eval(module: nn.Module) -> None:
    """Keep a module and all below it in eval mode: `train()` no longer reaches it."""
    module.eval()
    module.train = MethodType(_stay_evaluating, module)  # type: ignore[method-assign]


def pin_training(module: nn.Module) -> None:
    """Keep a module in training mode: `eval()` no longer reaches it."""
    module.train()
    module.train = MethodType(_stay_training, module)  # type: ignore[method-assign]


def unpin(module: nn.Module) -> None:
    """Give a module its own `train` back."""
    module.__dict__.pop("train", None)


def _stay_evaluating(module: nn.Module, mode: bool = True) -> nn.Module:
    return nn.Module.train(module, False)


def _stay_training(module: nn.Module, mode: bool = True) -> nn.Module:
    return nn.Module.train(module, True)
