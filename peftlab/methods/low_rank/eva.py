"""EVA (Paischer et al., 2024): A from the directions of the layers' inputs, ranks by layer.

PEFT does it. It takes batches in turn until its directions no longer change, for ever if they do;
and its own choice of which positions count knows language models alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel, get_eva_state_dict, initialize_lora_eva_weights

from peftlab.errors import CheckFailed
from peftlab.methods.adapter_files import ADAPTER_NAME
from peftlab.methods.low_rank.decomposed import lora_layers
from peftlab.methods.method import Beginning
from peftlab.methods.trained_part import Start
from peftlab.model.mode import evaluating
from peftlab.model.precision import training_device

_MOST_BATCHES = 256

Batch = Mapping[str, torch.Tensor]


def directions(model: PeftModel, beginning: Beginning) -> Start:
    """A pass over training rows: A of every layer, with as many rows as the layer's new rank.

    Raises `CheckFailed` where batches are too small for the rank, directions do not converge, or a
    layer has none, which PEFT would start as an ordinary one.
    """
    batches = list(beginning.batches())
    _check_enough(model, batches)
    device = torch.device(training_device())
    narrow = torch.autocast(
        device.type, torch.bfloat16, enabled=beginning.compute is torch.bfloat16
    )
    place = next(model.parameters()).device
    model.to(device)
    with evaluating(model), torch.no_grad(), torch.random.fork_rng(), narrow:
        factors: dict[str, torch.Tensor] = get_eva_state_dict(
            model,
            _Bounded(batches, device),
            prepare_model_inputs_fn=_masks,
            prepare_layer_inputs_fn=_counted,
            show_progress_bar=False,
        )
    model.to(place)
    if missing := sorted(lora_layers(model).keys() - factors.keys()):
        raise CheckFailed(
            "method.init_lora_weights is eva, but the training rows give no directions for "
            f"{missing[0].removeprefix('base_model.model.')}; leave it out by "
            "method.exclude_modules, or take another start."
        )
    return Start("eva", {name: a.detach().float().cpu() for name, a in factors.items()})


def place(model: PeftModel, start: Start) -> None:
    """Give the layers their ranks and A, and take the adapter off those whose rank is zero.

    What PEFT's configuration says afterwards is an ordinary LoRA with ranks by layer.
    """
    config: Any = model.peft_config[ADAPTER_NAME]
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        initialize_lora_eva_weights(model, eva_state_dict=dict(start.tensors))
    for name, parameter in model.named_parameters():
        # PEFT makes layers of another rank anew, in the base's dtype.
        if "lora_" in name and parameter.dtype is not torch.float32:
            parameter.data = parameter.data.float()
    config.target_modules = sorted(config.target_modules)
    config.alpha_pattern = {
        name: int(alpha) if float(alpha).is_integer() else alpha
        for name, alpha in config.alpha_pattern.items()
    }
    config.init_lora_weights, config.eva_config = True, None


class _Bounded:
    """Batches in turn, but not for ever."""

    def __init__(self, batches: Sequence[Batch], device: torch.device) -> None:
        self._batches = batches
        self._device = device

    def __len__(self) -> int:
        return _MOST_BATCHES

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in range(_MOST_BATCHES):
            batch = self._batches[number % len(self._batches)]
            yield {name: value.to(self._device) for name, value in batch.items()}
        raise CheckFailed(
            "method.init_lora_weights is eva, whose directions did not converge in "
            f"{_MOST_BATCHES} batches; lower method.r, or take another start."
        )


def _check_enough(model: PeftModel, batches: Sequence[Batch]) -> None:
    rho = 2.0  # EvaConfig's default
    wanted = {n: round(layer.r[ADAPTER_NAME] * rho) for n, layer in lora_layers(model).items()}
    for name, layer in lora_layers(model).items():
        if wanted[name] > layer.in_features:
            raise CheckFailed(
                f"method.init_lora_weights is eva, which looks for {wanted[name]} directions in "
                f"{name}'s {layer.in_features} features; lower method.r."
            )
    least = min((int(mask.sum()) for batch in batches for mask in _masks(batch, None)), default=0)
    most = max(wanted.values(), default=0)
    if least < most:
        raise CheckFailed(
            f"method.init_lora_weights is eva, which needs {most} positions a batch for "
            f"method.r, and a batch of training rows has {least}; lower method.r."
        )


def _masks(batch: Batch, config: Any) -> list[torch.Tensor]:
    """Which positions count, for each shape of positions that the batch has."""
    ids = batch["input_ids"]
    every = torch.ones_like(ids, dtype=torch.bool)
    mask = batch.get("attention_mask")
    masks = [mask.bool() if mask is not None and mask.shape == ids.shape else every]
    if (written := batch.get("decoder_input_ids")) is not None and written.shape != ids.shape:
        masks.append(torch.ones_like(written, dtype=torch.bool))
    return masks


def _counted(layer_input: Any, masks: list[torch.Tensor], name: str) -> torch.Tensor:
    """The rows of a layer's input at positions that count; all where it has other positions."""
    inputs = layer_input if isinstance(layer_input, torch.Tensor) else layer_input[0]
    for mask in masks:
        if inputs.dim() == 3 and inputs.shape[:2] == mask.shape:
            return inputs[mask]
    # PEFT hashes a flat view of them.
    return inputs.reshape(-1, inputs.shape[-1]).contiguous()
