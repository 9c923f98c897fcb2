"""Swap the classes of a model's layers for fused ones, and back."""

from __future__ import annotations

from typing import Any, get_args

from peft.tuners import lora
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from peftlab.fusion.fp32.widen import narrow, widen
from peftlab.fusion.guards import replaces_forward, why_not
from peftlab.fusion.int8.gate import (
    Int8Gate,
    RequestedArithmetic,
    check_arithmetic,
    gate_of,
    set_gate,
)
from peftlab.fusion.int8.layers import GatedInt8Linear, bitsandbytes_weights
from peftlab.fusion.lora_layer import FusedLoraLinear
from peftlab.fusion.report import Activations, FusionReport, NotFused
from peftlab_kernels.error_gate import TOLERANCE
from peftlab_kernels.int8_linear import Int8Linear

Swaps = dict[type[Any], type[Any]]
"""The class of a fused layer, by the class that it had."""


def fuse(
    model: nn.Module,
    activations: Activations = "keep",
    *,
    arithmetic: RequestedArithmetic = "auto",
    tolerance: float = TOLERANCE,
) -> FusionReport:
    """Let the kernels compute the LoRA layers of a PEFT model, in place.

    Results, gradients, state dict, saving, loading, merging and switching adapters stay PEFT's;
    only rounding and the random numbers of dropout differ. May be called again at any time, and
    must be called after `add_adapter` or `load_adapter` has adapted new layers. `unfuse` undoes it;
    second derivatives need that.

    Args:
        model: a PEFT model, or any model that holds one.
        activations: `keep` changes no dtype. `fp32` lets a model whose weights are stored in 16
            bits compute in fp32, also one without adapters: see `fusion.fp32.widen`.
        arithmetic: of 8-bit layers, adapted or not, bitsandbytes' too: `w8a8` quantises activations
            as well, `w8a16` dequantises the weight. `auto` measures the
            error of w8a8 on each layer's first calls, and takes w8a8 where that is within the
            tolerance; until then the layer computes by w8a16.
        tolerance: in multiples of w8a8's error on Gaussian activations.

    Raises:
        ValueError: an invalid `activations`, `arithmetic` or `tolerance`.
    """
    check_arithmetic(arithmetic, tolerance)
    if activations not in get_args(Activations):
        raise ValueError(
            f"activations is {activations!r}; it must be one of {', '.join(get_args(Activations))}"
        )
    widened = widen(model) if activations == "fp32" else None
    swaps = _swaps()
    kinds = tuple(swaps.values())
    fused, others, gates = [], [], {}
    for name, layer in model.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            if (gate := _gated(name, layer, swaps, arithmetic, tolerance)) is not None:
                gates[gate.layer] = gate
            continue
        if isinstance(layer, TrainableTokensLayer):  # rows of a table: no product to fuse
            continue
        kind = _kind(layer)
        reason = None if isinstance(layer, kinds) else _why_not_swap(layer, swaps)
        if reason is None:
            _swap(layer, swaps)
            reason = why_not(layer)  # type: ignore[arg-type]
        if reason is None:
            fused.append(name)
        else:
            others.append(NotFused(name, kind, reason))
    return FusionReport(activations, tuple(fused), tuple(others), widened, gates)


def unfuse(model: nn.Module) -> None:
    """Restore the class of every layer that `fuse` changed, and the dtype of every tensor.

    Raises:
        TypeError: a fused layer's class was replaced by a class derived from it, as `fully_shard`
            on the layer itself does; nothing is changed then.
    """
    plain = {fused: kind for kind, fused in _swaps().items()}
    changed = [(name, m) for name, m in model.named_modules() if isinstance(m, tuple(plain))]
    for name, layer in changed:
        if type(layer) not in plain:
            raise TypeError(
                f"{name} is a {type(layer).__name__}, derived from a fused layer; undo that first, "
                "or unfuse before it"
            )
    for _, layer in changed:
        layer.__class__ = plain[type(layer)]
        set_gate(layer, None)
    narrow(model)


def _swaps() -> Swaps:
    ours: Swaps = {lora.Linear: FusedLoraLinear, Int8Linear: GatedInt8Linear}
    if bitsandbytes_weights() is None:
        return ours
    from peftlab.fusion.bitsandbytes_layers import SWAPS

    return ours | SWAPS


def _swap(layer: Any, swaps: Swaps) -> None:
    if type(layer) in swaps:
        # accelerate leaves the class's forward on the instance, which would hide ours.
        vars(layer).pop("forward", None)
        layer.__class__ = swaps[type(layer)]


def _gated(
    name: str,
    layer: nn.Module,
    swaps: Swaps,
    arithmetic: RequestedArithmetic,
    tolerance: float,
) -> Int8Gate | None:
    """The gate of an 8-bit layer, a new one unless it has one with these settings."""
    if not isinstance(layer, (*swaps, *swaps.values())) or replaces_forward(layer):
        return None
    _swap(layer, swaps)
    if type(layer) not in swaps.values():
        return None
    gate = gate_of(layer)
    if gate is None or (gate.requested, gate.tolerance) != (arithmetic, tolerance):
        gate = Int8Gate(name.removesuffix(".base_layer"), arithmetic, tolerance)
        set_gate(layer, gate)
    return gate


def _why_not_swap(layer: Any, swaps: Swaps) -> str | None:
    """Why a layer cannot become a fused one."""
    if not isinstance(layer, lora.LoraLayer):
        return f"its adapter is not LoRA ({_kind(layer)})"
    if type(layer).__name__ == "ParamWrapper":
        return "it adapts a parameter (target_parameters), not a layer"
    if type(layer) not in swaps:
        return "only PEFT's lora.Linear, Linear8bitLt and Linear4bit are fused"
    if replaces_forward(layer):
        return "its forward is replaced on the instance, as accelerate's hooks do"
    return None


def _kind(layer: Any) -> str:
    """The layer's class in PEFT, such as `lora.Linear`."""
    own = next((plain for plain, fused in _swaps().items() if type(layer) is fused), type(layer))
    parts = own.__module__.split(".")
    return ".".join([*parts[2:3], own.__name__] if parts[0] == "peft" else [own.__name__])
