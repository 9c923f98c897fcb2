"""Starts from the base's weights: PiSSA and OLoRA, which take it out of them, and MiCA.

PiSSA (Meng, Wang and Zhang, 2024) starts with the largest singular directions, OLoRA (Büyükakyüz,
2024) with the first columns of a QR decomposition. The base then holds the rest while it trains,

    W = (W - s B0 A0) + s B0 A0.

No other program has that base. An adapter [A; A0], [B, -B0] of twice the rank over the untouched
one computes the same, and that is what is saved.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from safetensors.torch import save_file

from peftlab.methods.adapter_files import ADAPTER_NAME, WEIGHTS, adapter_tensors
from peftlab.methods.trained_part import Start
from peftlab.model.precision import training_device


def lora_layers(model: PeftModel) -> dict[str, Any]:
    """The adapted layers by their names in PEFT's model, without single adapted parameters."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
        and not isinstance(module, ParamWrapper)
        and ADAPTER_NAME in module.lora_A
    }


@torch.no_grad()
def take_out(model: PeftModel, kind: str, *, seed: int, place: bool) -> Start:
    """Decompose every adapted layer's weight and leave the rest there; returns A0 and B0 in fp32.

    `place`: the adapter takes them as its factors; else it keeps those it has.
    """
    tensors = {}
    for number, (name, layer) in enumerate(lora_layers(model).items()):
        weight = _oriented(layer, layer.get_base_layer().weight.detach())
        with torch.random.fork_rng():
            torch.manual_seed(seed + number)
            a, b = _factors(
                weight.to(training_device(), torch.float32),
                layer.r[ADAPTER_NAME],
                layer.scaling[ADAPTER_NAME],
                kind,
            )
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = a.cpu(), b.cpu()
    start = Start(kind, tensors, taken_out=True)
    take_out_again(model, start)
    if place:
        _place(model, tensors)
        for layer in lora_layers(model).values():
            _measure_magnitude(layer)
    return start


@torch.no_grad()
def take_out_again(model: PeftModel, start: Start) -> None:
    """Take a known start out of a freshly loaded base: the same rest to the bit."""
    for name, layer in lora_layers(model).items():
        base = layer.get_base_layer()
        a, b = (start.tensors[f"{name}.lora_{x}.weight"] for x in "AB")
        weight = _oriented(layer, base.weight.detach()).float()
        rest = (weight - layer.scaling[ADAPTER_NAME] * (b @ a).to(weight)).to(base.weight.dtype)
        base.weight.data = _oriented(layer, rest).contiguous()


@torch.no_grad()
def minor_directions(model: PeftModel, *, place: bool) -> Start:
    """MiCA: A is zero; B, which stays, the singular directions of the smallest singular values.

    `place` as `take_out` has it.
    """
    tensors = {}
    for name, layer in lora_layers(model).items():
        b = layer.lora_B[ADAPTER_NAME].weight
        if place:
            weight = _oriented(layer, layer.get_base_layer().weight.detach())
            left = torch.linalg.svd(
                weight.to(training_device(), torch.float32), full_matrices=False
            )[0]
            layer.lora_A[ADAPTER_NAME].weight.zero_()
            b.copy_(left[:, -b.shape[1] :])
        tensors[f"{name}.lora_B.weight"] = b.detach().cpu().clone()
    return Start("mica", tensors)


@torch.no_grad()
def place_again(model: PeftModel, start: Start) -> None:
    """Put a known start's factors into the adapter."""
    _place(model, start.tensors)


def freeze_b(model: PeftModel) -> None:
    """Keep B as it is, in PEFT's own way, which holds when adapters are switched."""
    for layer in lora_layers(model).values():
        layer.frozen_peft_weight_names = {ADAPTER_NAME: ("lora_B",)}
        layer._freeze_non_trainable_peft_weights(ADAPTER_NAME)


def save_over_base(model: PeftModel, start: Start, folder: Path) -> None:
    """Write the adapter of twice the rank over the untouched base, with its configuration."""
    now = {name: tensor.detach().cpu() for name, tensor in adapter_tensors(model).items()}
    for name, first in start.tensors.items():
        is_a = ".lora_A." in name
        parts = [now[name], first.to(now[name].dtype) * (1 if is_a else -1)]
        now[name] = torch.cat(parts, dim=0 if is_a else 1)
    save_file(
        {name: tensor.contiguous() for name, tensor in now.items()},
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )
    doubled(model.peft_config[ADAPTER_NAME]).save_pretrained(str(folder))


def doubled(config: Any) -> Any:
    """The configuration with twice the rank and the same scaling."""
    twice = copy.deepcopy(config)
    # alpha / sqrt(2 r) is the same scaling with alpha times sqrt(2).
    more = 2**0.5 if twice.use_rslora else 2
    twice.r *= 2
    twice.lora_alpha *= more
    twice.rank_pattern = {key: 2 * rank for key, rank in twice.rank_pattern.items()}
    twice.alpha_pattern = {key: more * alpha for key, alpha in twice.alpha_pattern.items()}
    twice.init_lora_weights, twice.inference_mode = True, True
    return twice


def _factors(
    weight: torch.Tensor, rank: int, scaling: float, kind: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """A0 [r, K] and B0 [N, r] of a weight [N, K] in fp32."""
    if kind == "olora":
        q, upper = torch.linalg.qr(weight)
        return upper[:rank].contiguous(), q[:, :rank].contiguous()
    if kind == "pissa":
        u, values, vh = torch.linalg.svd(weight, full_matrices=False)
        u, values, vh = u[:, :rank], values[:rank], vh[:rank]
    else:
        rounds = int(kind.removeprefix("pissa_niter_"))
        u, values, v = torch.svd_lowrank(weight, rank, niter=rounds)
        vh = v.T
    root = (values / scaling).sqrt()
    return (root[:, None] * vh).contiguous(), (u * root).contiguous()


def _oriented(layer: Any, weight: torch.Tensor) -> torch.Tensor:
    """[N, K], whichever way the layer holds it; its own inverse."""
    return weight.T if layer.fan_in_fan_out else weight


def _place(model: PeftModel, tensors: Mapping[str, torch.Tensor]) -> None:
    for name, layer in lora_layers(model).items():
        for factor in ("lora_A", "lora_B"):
            if (tensor := tensors.get(f"{name}.{factor}.weight")) is not None:
                getattr(layer, factor)[ADAPTER_NAME].weight.copy_(tensor)


def _measure_magnitude(layer: Any) -> None:
    """DoRA's magnitude was taken of random factors; take it again, in the same parameter."""
    if ADAPTER_NAME not in layer.lora_magnitude_vector:
        return
    vector = layer.lora_magnitude_vector[ADAPTER_NAME]
    kept = vector.weight
    vector.update_layer(
        base_layer=layer.get_base_layer(),
        lora_A=layer.lora_A[ADAPTER_NAME].weight,
        lora_B=layer.lora_B[ADAPTER_NAME].weight,
        scaling=layer.scaling[ADAPTER_NAME],
    )
    kept.copy_(vector.weight)
    vector.weight = kept
