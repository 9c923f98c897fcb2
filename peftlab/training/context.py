"""What training changes and restores afterwards: logging, environment, model switches."""

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
def quiet_training() -> Iterator[None]:
    """Silence warnings of Transformers and bitsandbytes about choices that are intended."""
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
def frozen_heap() -> Iterator[None]:
    """Exclude all existing objects from garbage collection.

    The imports alone are half a million objects, whose traversal takes most of a second at every
    full collection. Objects created inside the block are collected as usual.
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
    """Keep reporters' files inside the run, unless the user set another folder."""
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
    """No key-value cache, and recomputed blocks if requested; all restored afterwards.

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
        # Trainer disables it for good; generation afterwards needs it.
        if cached is not None:
            config.use_cache = cached


def _outermost(model: nn.Module) -> list[PreTrainedModel]:
    """The outermost Transformers models in `model`; none in a head over features."""
    if isinstance(model, PreTrainedModel):
        return [model]
    return [part for child in model.children() for part in _outermost(child)]


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
