"""What training changes around itself and puts back: logging, environment, model switches."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from peftlab.errors import CheckFailed


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what Transformers and bitsandbytes say about choices that were made on purpose."""
    before = transformers_logging.get_verbosity()
    # "Inputs will be cast": true of every 8-bit layer at every step.
    casting = logging.getLogger("bitsandbytes.autograd._functions")
    level = casting.level
    transformers_logging.set_verbosity_error()
    casting.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast")
            warnings.filterwarnings("ignore", message=".*[Pp]aged")
            yield
    finally:
        casting.setLevel(level)
        transformers_logging.set_verbosity(before)


@contextlib.contextmanager
def settled_heap() -> Iterator[None]:
    """Let the garbage collector pass over all that exists already.

    The imports alone are half a million objects, and walking through them takes most of a second
    every time a full collection comes round. What the block makes is collected as ever.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def reporters_into(staging: Path) -> Iterator[None]:
    """Keep loggers' files inside the run, unless the user sent them elsewhere."""
    folders = {"TENSORBOARD_LOGGING_DIR": staging / "tensorboard", "WANDB_DIR": staging}
    ours = {key: str(folder) for key, folder in folders.items() if key not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for key in ours:
            os.environ.pop(key, None)


@contextlib.contextmanager
def switched_for_training(model: nn.Module, *, gradient_checkpointing: bool) -> Iterator[None]:
    """No key-value cache, and checkpointed blocks if asked; all as it was afterwards.

    Raises `CheckFailed` where the architecture cannot recompute its blocks.
    """
    config: Any = getattr(model, "config", None)
    cached = getattr(config, "use_cache", None)
    checkpointed = _outermost(model) if gradient_checkpointing else []
    for part in checkpointed:
        if not part.supports_gradient_checkpointing:
            raise CheckFailed(
                f"{type(part).__name__} cannot recompute its blocks; "
                "set train.gradient_checkpointing to false."
            )
        _checkpoint(part)
    try:
        yield
    finally:
        for part in checkpointed:
            _uncheckpoint(part)
        vars(model).pop("_is_accelerate_prepared", None)
        # Trainer switches it off for good; generation afterwards wants it.
        if cached is not None:
            config.use_cache = cached


def _outermost(model: nn.Module) -> list[PreTrainedModel]:
    """The Transformers models in `model` that lie in no other; none in a head over features."""
    if isinstance(model, PreTrainedModel):
        return [model]
    return [found for child in model.children() for found in _outermost(child)]


def _checkpoint(model: PreTrainedModel) -> None:
    # Without reentry, frozen inputs need no gradient for the blocks to train.
    arguments = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=arguments)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=arguments)


def _uncheckpoint(model: PreTrainedModel) -> None:
    if hasattr(model, "activation_checkpointing_disable"):
        model.activation_checkpointing_disable()
    else:
        model.gradient_checkpointing_disable()
