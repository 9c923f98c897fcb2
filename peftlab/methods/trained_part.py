"""The tensors that train, in memory and below a run's folder: never the frozen base.

Adapters are saved in PEFT's own format under `adapter/`; everything else as one safetensors file
under `trained/`, whose names are the model's parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from peftlab.methods.adapter_files import check_same_tensors

ADAPTER = "adapter"
TRAINED = "trained"
WEIGHTS = "model.safetensors"


def trained_folder(run: Path) -> Path:
    """Where the trained part of a run lies, whichever method trained it."""
    adapter = run / ADAPTER
    return adapter if adapter.is_dir() else run / TRAINED


def trained_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that train, by name, sharing memory with the model."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def load_trained_state(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Copy tensors into the parameters that train. Raises `CheckFailed` unless all fit exactly."""
    mine = trained_state(model)
    check_same_tensors(state, mine, "the saved state")
    with torch.no_grad():
        for name, tensor in mine.items():
            tensor.copy_(state[name])
