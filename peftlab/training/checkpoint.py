"""Checkpoints: trained part, optimizer, schedule, random state and counts; complete or absent.

STAGING/
  best.safetensors      trained tensors of the best evaluation so far
  start.safetensors     what the method started from, where it computed that
  checkpoint-STEP/
    trained.safetensors  optimizer.pt  scheduler.pt  rng_state.pth
    trainer_state.json   ledger.json   best.safetensors  start.safetensors (linked)
    method.safetensors   state of a method's step hooks
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from peftlab.errors import CheckFailed, ConfigError
from peftlab.files import fsync, fsync_tree, link_or_copy, replacing
from peftlab.methods.trained_part import START, load_trained_state, trained_state
from peftlab.training.ledger import Ledger

TRAINED = "trained.safetensors"
BEST = "best.safetensors"
METHOD = "method.safetensors"
LEDGER = "ledger.json"
STATE = "trainer_state.json"
_FILES = (TRAINED, LEDGER, STATE, "optimizer.pt", "scheduler.pt", "rng_state.pth")


def save_trained(model: nn.Module, path: Path) -> None:
    """Write the trainable tensors by parameter name; `path` is always a complete file."""
    # Checkpoints have hard links to the old file, which keeps its content.
    with replacing(path) as partial:
        save_file({name: t.contiguous() for name, t in trained_state(model).items()}, partial)


def load_trained(model: nn.Module, path: Path) -> None:
    """Copy tensors that `save_trained` wrote into the model.

    Raises `CheckFailed` where the file is damaged or names other tensors than the model trains.
    """
    load_trained_state(model, load_tensors(path))


def save_method(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write what a method remembers beside the tensors that train."""
    save_file({name: t.detach().cpu().contiguous() for name, t in state.items()}, path)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors. Raises `CheckFailed` where the file is missing or damaged."""
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckFailed(
            f"{path} cannot be read ({error}); start again without --resume."
        ) from None
    return tensors


def write_checkpoint(staging: Path, step: int, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a folder, rename it once it is complete, and remove older ones."""
    final = staging / f"checkpoint-{step}"
    partial = staging / f"{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    write(partial)
    for name in (BEST, START):
        if (staging / name).exists():
            link_or_copy(staging / name, partial / name)
    fsync_tree(partial)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    fsync(staging)
    for other in staging.glob("checkpoint-*"):
        if other != final:
            shutil.rmtree(other)
    return final


def open_checkpoint(checkpoint: Path, staging: Path) -> Ledger:
    """Read a checkpoint's ledger, and restore its best weights so far into `staging`.

    Raises `CheckFailed` naming what is missing from the checkpoint.
    """
    missing = [name for name in _FILES if not (checkpoint / name).is_file()]
    if missing:
        raise CheckFailed(
            f"{checkpoint} is incomplete, without {', '.join(missing)}; "
            "start again without --resume."
        )
    (staging / BEST).unlink(missing_ok=True)
    if (checkpoint / BEST).exists():
        link_or_copy(checkpoint / BEST, staging / BEST)
    return Ledger.load(checkpoint / LEDGER)


def check_settings(ledger: Ledger, settings: dict[str, object], checkpoint: Path) -> None:
    """Raise `ConfigError` listing settings that differ from those of the checkpoint."""
    before = ledger.settings
    changed = [
        f"{key} was {before.get(key)!r} and is {settings.get(key)!r}"
        for key in sorted(before.keys() | settings.keys())
        if before.get(key) != settings.get(key)
    ]
    if changed:
        raise ConfigError(
            f"{checkpoint} was trained with other settings: {'; '.join(changed)}. "
            "Restore them to resume, or start again without --resume."
        )
