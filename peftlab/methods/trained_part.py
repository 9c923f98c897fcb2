"""The tensors that train, in memory and below a run's folder: never the frozen base. And what they
start from, where that was computed.

Adapters are saved in PEFT's own format under `adapter/`; everything else as one safetensors file
under `trained/`, whose names are the model's parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from peftlab.errors import CheckFailed
from peftlab.files import replacing
from peftlab.methods.adapter_files import check_same_tensors

ADAPTER = "adapter"
TRAINED = "trained"
WEIGHTS = "model.safetensors"
START = "start.safetensors"
"""In a checkpoint: what training started from."""


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


@dataclass(frozen=True, slots=True)
class Start:
    """What a method computed before the first step, of the base or of the data, and must keep.

    Tensors by the method's own names, on the CPU; `kind` is what they were computed by;
    `taken_out`: they were taken out of the base's weights, which hold the rest.
    """

    kind: str
    tensors: Mapping[str, torch.Tensor]
    taken_out: bool = False

    def save(self, folder: Path) -> None:
        """Write it as `START`; the folder holds the old file or the new one."""
        with replacing(folder / START) as partial:
            tensors = {name: t.contiguous() for name, t in self.tensors.items()}
            said = {"format": "pt", "kind": self.kind, "taken_out": str(self.taken_out).lower()}
            save_file(tensors, partial, metadata=said)

    @classmethod
    def of(cls, checkpoint: Path) -> Start | None:
        """The one that a checkpoint carries, if any. Raises `CheckFailed` for a damaged file."""
        file = checkpoint / START
        if not file.is_file():
            return None
        try:
            with safe_open(file, framework="pt") as opened:
                said = opened.metadata() or {}
            taken_out = said.get("taken_out") == "true"
            return cls(said.get("kind", ""), load_file(file), taken_out)
        except (SafetensorError, OSError) as error:
            raise CheckFailed(f"{file} cannot be read ({error}); start anew.") from None
