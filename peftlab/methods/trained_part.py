"""What training changed, in memory and on disk: never the frozen base.

Adapters are saved in PEFT's own format under `adapter/`; everything else as one safetensors file
under `trained/`, whose names are the model's parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from peftlab.config.schema import MethodConfig
from peftlab.errors import CheckFailed
from peftlab.methods.adapter_files import check_same_tensors, load_adapter
from peftlab.methods.apply import Applied, apply_method

ADAPTER = "adapter"
TRAINED = "trained"
WEIGHTS = "model.safetensors"
_FORMAT = "1"


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


def save_trained(applied: Applied, folder: Path) -> Path:
    """Write the trained part below `folder` and return where it lies."""
    if isinstance(applied.model, PeftModel):
        target = folder / ADAPTER
        # Embeddings never train here; left to itself PEFT would ask the hub about them.
        applied.model.save_pretrained(
            str(target), safe_serialization=True, save_embedding_layers=False
        )
        return target
    target = folder / TRAINED
    target.mkdir(parents=True, exist_ok=True)
    state = {n: t.cpu().contiguous() for n, t in trained_state(applied.model).items()}
    config = getattr(applied.model, "config", None)
    metadata = {
        "format": "pt",
        "peftlab_format": _FORMAT,
        "method": applied.method.name,
        "task": applied.task,
        "base_model_name_or_path": str(getattr(config, "name_or_path", "")),
    }
    save_file(state, target / WEIGHTS, metadata=metadata)
    return target


def load_trained(
    model: nn.Module, method: MethodConfig, folder: Path, *, task: str, tokens: Sequence[int] = ()
) -> Applied:
    """Apply a method to its freshly loaded base and fill in what `save_trained` wrote.

    Raises `CheckFailed` where the file is missing or damaged, is another method's, or does not fit.
    """
    if method.name in {"lora", "qlora"}:
        target = folder / ADAPTER
        fresh = method.model_copy(update={"init_from": None})
        applied = apply_method(model, fresh, task=task, tokens=tokens)
        assert isinstance(applied.model, PeftModel)
        if not target.is_dir():
            raise CheckFailed(f"{folder} has no {ADAPTER} folder; the run is not whole.")
        load_adapter(target, applied.model, fresh_head=False)
        return applied
    file = folder / TRAINED / WEIGHTS
    if not file.is_file():
        raise CheckFailed(f"{folder} has no {TRAINED}/{WEIGHTS}; the run is not whole.")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
        state = load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckFailed(f"{file} is not a whole safetensors file ({error}).") from None
    if metadata.get("method") != method.name:
        raise CheckFailed(
            f"{file} was trained by {metadata.get('method', 'another method')}, not {method.name}."
        )
    applied = apply_method(model, method, task=task)
    mine = trained_state(applied.model)
    check_same_tensors(state, mine, str(file))
    load_trained_state(applied.model, state)
    return applied
