"""Parameters that a model class ties and a checkpoint does not.

Transformers ties T5's head to its embeddings regardless of its configuration, and unties them while
loading where the checkpoint (T5 1.1, FLAN-T5) has two different tensors. A model that is built
without weights must be the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from peftlab.model.checkpoint import tensor_shapes
from peftlab.model.structure import tied_parameters


def untie_stored(model: nn.Module, files: tuple[Path, ...]) -> None:
    """Untie the parameters of a model on meta that differ in `files`."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    where = _files_of(files)
    for group in tied_parameters(model):
        stored = {
            name: key
            for name in group
            for key in (name, name.removeprefix(prefix), prefix + name)
            if key in where
        }
        first = next(iter(stored.values()), None)
        for name, key in stored.items():
            assert first is not None
            if key != first and not _equal(key, first, where):
                _untie(model, name)


def _files_of(files: tuple[Path, ...]) -> dict[str, Path]:
    return {key: file for file in files for key in tensor_shapes((file,))}


def _equal(one: str, other: str, where: Mapping[str, Path]) -> bool:
    with safe_open(where[one], framework="pt") as opened:
        first = opened.get_tensor(one)
    with safe_open(where[other], framework="pt") as opened:
        return torch.equal(first, opened.get_tensor(other))


def _untie(model: nn.Module, name: str) -> None:
    owner, _, last = name.rpartition(".")
    module = model.get_submodule(owner)
    shared = module.get_parameter(last)
    setattr(module, last, nn.Parameter(torch.empty_like(shared), shared.requires_grad))
