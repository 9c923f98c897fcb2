"""Swap the classes of a model's layers for fused ones, and back."""

from __future__ import annotations

from typing import get_args

from peft.tuners import lora
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from peftlab.fusion.fp32_activations import narrow, widen
from peftlab.fusion.guards import replaces_forward, why_not
from peftlab.fusion.lora_layer import FusedLoraLinear
from peftlab.fusion.report import Activations, FusionReport, NotFused


def fuse(model: nn.Module, activations: Activations = "keep") -> FusionReport:
    """Let the kernels compute the LoRA layers of a PEFT model, in place.

    Results, gradients, state dict, saving, loading, merging and switching adapters stay PEFT's;
    only rounding and the random numbers of dropout differ. May be called again at any time, and
    must be after `add_adapter` or `load_adapter` has adapted new layers. `unfuse` undoes it, which
    second derivatives need.

    Args:
        model: a PEFT model, or any model that holds one.
        activations: `keep` changes no dtype. `fp32` lets a model whose weights rest in 16 bits
            compute in fp32, also one without adapters: see `fp32_activations.widen`.

    Raises:
        ValueError: `activations` is none of these.
    """
    if activations not in get_args(Activations):
        raise ValueError(
            f"activations is {activations!r}; it must be one of {', '.join(get_args(Activations))}"
        )
    widened = widen(model) if activations == "fp32" else None
    fused, others = [], []
    for name, layer in model.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        kind = _kind(layer)
        reason = _why_not_swap(layer) if not isinstance(layer, FusedLoraLinear) else None
        if reason is None:
            if type(layer) is lora.Linear:
                # accelerate's removed hooks leave the class's forward there, which would hide ours.
                vars(layer).pop("forward", None)
                layer.__class__ = FusedLoraLinear
            reason = why_not(layer)
        if reason is None:
            fused.append(name)
        else:
            others.append(NotFused(name, kind, reason))
    return FusionReport(activations, tuple(fused), tuple(others), widened)


def unfuse(model: nn.Module) -> None:
    """Give every layer that `fuse` changed its own class back, and every tensor its own dtype.

    Raises:
        TypeError: something made a class of its own from a fused layer's, as `fully_shard` on the
            layer itself does; nothing is changed then.
    """
    fused = [(name, m) for name, m in model.named_modules() if isinstance(m, FusedLoraLinear)]
    for name, layer in fused:
        if type(layer) is not FusedLoraLinear:
            raise TypeError(
                f"{name} is a {type(layer).__name__}, made from a fused layer; undo that first, "
                "or unfuse before it"
            )
    for _, layer in fused:
        layer.__class__ = lora.Linear  # type: ignore[assignment]
    narrow(model)


def _why_not_swap(layer: BaseTunerLayer) -> str | None:
    """Why a layer cannot become a `FusedLoraLinear` at all."""
    if not isinstance(layer, lora.LoraLayer):
        return f"an adapter of another kind than LoRA ({_kind(layer)})"
    name = type(layer).__name__
    if name == "Linear8bitLt":
        return "its base is 8-bit; the kernels read bases of 16 and 32 bits"
    if name == "ParamWrapper":
        return "it adapts a parameter (target_parameters), not a layer"
    if type(layer) is not lora.Linear:
        return "only PEFT's plain lora.Linear is fused"
    if replaces_forward(layer):
        return "its forward is replaced on the instance, as accelerate's hooks do"
    return None


def _kind(layer: BaseTunerLayer) -> str:
    """The layer's class as PEFT has it, such as `lora.Linear`."""
    own = lora.Linear if isinstance(layer, FusedLoraLinear) else type(layer)
    parts = own.__module__.split(".")
    return ".".join([*parts[2:3], own.__name__] if parts[0] == "peft" else [own.__name__])
