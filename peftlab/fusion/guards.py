"""When a LoRA layer must run PEFT's own forward, and why.

PEFT calls the layer's parts as modules, the kernels read the parts' tensors. The two agree only
while no part was changed: no hook, no other class, no tensor that is sharded or on another device.
This is checked at every call, so anything slow happens on refusal only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module
from transformers.pytorch_utils import Conv1D

from peftlab.fusion.fp32.frozen_linear import SIXTEEN_BITS, FrozenConv1D, FrozenLinear
from peftlab.fusion.int8.gate import Int8Gate, gate_of
from peftlab.fusion.int8.layers import int8_weight_of, is_packed
from peftlab_kernels.functional import LARGEST_RANK
from peftlab_kernels.int8_format import Int8Weight

TRANSPOSED: dict[type[nn.Module], bool] = {
    nn.Linear: False,
    FrozenLinear: False,
    Conv1D: True,
    FrozenConv1D: True,
}
"""The base layers that the kernels compute, and whether their weight is [K, N]."""

WIDENING = frozenset({FrozenLinear, FrozenConv1D})

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Parts(NamedTuple):
    """What the kernels read of a layer: `weight [N, K]` ([K, N] if transposed), `lora_a [R, K]`,
    `lora_b [N, R]`, `bias` and `lora_bias` [N]; `dropout` is this call's probability. An 8-bit
    weight is its codes, with `scales` [N] and the layer's gate; a `packed` one, in 4 bits, is read
    by its own layer alone."""

    weight: Tensor
    bias: Tensor | None
    lora_a: Tensor
    lora_b: Tensor
    lora_bias: Tensor | None
    scaling: float | Tensor
    dropout: float
    transposed: bool
    widens: bool
    """Whether the input is fp32 and the weight 16-bit, as in a model with fp32 activations."""
    casts_input: bool
    """Whether PEFT casts the adapter's input to the adapter's dtype."""
    scales: Tensor | None
    gate: Int8Gate | None
    packed: bool


def why_not(layer: LoraLayer) -> str | None:
    """Why PEFT's own forward computes this layer at present; None where the kernels do."""
    parts = parts_of(layer)
    return parts if isinstance(parts, str) else None


def parts_of(layer: Any) -> Parts | str:
    """The tensors of a `peft.tuners.lora.Linear`, or why they must not be read."""
    if layer._disable_adapters:
        return "its adapters are disabled"
    if layer.merged_adapters:
        return f"merged into its base: {', '.join(layer.merged_adapters)}"
    modules = layer._modules
    down = modules["lora_A"]._modules
    active = [name for name in layer.active_adapters if name in down]
    if len(active) != 1:
        return f"{len(active)} adapters are active{': ' * bool(active)}{', '.join(active)}"
    (name,) = active
    if name in layer.lora_variant:
        return f"the adapter {name!r} is a variant, {type(layer.lora_variant[name]).__name__}"
    base, drop = modules["base_layer"], modules["lora_dropout"]._modules[name]
    a, b = down[name], modules["lora_B"]._modules[name]
    transposed = TRANSPOSED.get(type(base))
    int8: Int8Weight | None = None
    packed = transposed is None and is_packed(base)
    if transposed is None and packed:
        transposed = False
    elif transposed is None:
        weight_or_reason, transposed = int8_weight_of(base), False
        if weight_or_reason is None:
            return f"its base is a {type(base).__name__}, neither torch.nn.Linear nor Conv1D"
        if isinstance(weight_or_reason, str):
            return weight_or_reason
        int8 = weight_or_reason
    if type(a) is not nn.Linear or type(b) is not nn.Linear:
        return f"A and B are {type(a).__name__} and {type(b).__name__}, not torch.nn.Linear"
    if type(drop) is not nn.Identity and (type(drop) is not nn.Dropout or drop.inplace):
        return f"its dropout is {drop}, not a plain torch.nn.Dropout"
    if torch_module._has_any_global_hook():
        return "a hook is registered on all modules of the process"
    if _watched(base) or _watched(a) or _watched(b) or _watched(drop):
        return _who_is_watched({"base_layer": base, "lora_A": a, "lora_B": b, "dropout": drop})
    weight = base._parameters.get("weight") if int8 is None else int8.codes
    lora_a = a._parameters.get("weight")
    lora_b = b._parameters.get("weight")
    if weight is None or lora_a is None or lora_b is None:
        return "one of its weights is not a parameter of its own: sharded or parametrized"
    bias, lora_bias = base._parameters.get("bias"), b._parameters.get("bias")
    device = weight.device
    for tensor in (None if packed else weight, lora_a, lora_b, bias, lora_bias):
        if tensor is None:
            continue
        if type(tensor) is not nn.Parameter and type(tensor) is not Tensor:
            return f"one of its tensors is a {type(tensor).__name__}"
        if hasattr(tensor, "ds_id"):
            return "its tensors are sharded by DeepSpeed, gathered in the modules' own calls only"
        if tensor.device != device:
            return f"its tensors are on {tensor.device} and {device}"
    if weight.requires_grad:
        return "its base weight trains"
    if a._parameters.get("bias") is not None:
        return "A has a bias"
    if lora_a.dtype is not lora_b.dtype or lora_a.dtype not in FLOATS:
        return f"A is {lora_a.dtype} and B {lora_b.dtype}"
    if int8 is None and not packed and weight.dtype not in FLOATS:
        return f"its base weight is {weight.dtype}; the kernels read floats of 16 to 64 bits"
    if lora_a.shape[0] > LARGEST_RANK:
        return f"its rank is {lora_a.shape[0]}; the kernels take up to {LARGEST_RANK}"
    dropout = drop.p if type(drop) is nn.Dropout and drop.training else 0.0
    if dropout >= 1:
        return "its dropout probability is 1"
    return Parts(
        weight, bias, lora_a, lora_b, lora_bias, layer.scaling[name], dropout, transposed,
        type(base) in WIDENING, layer.cast_input_dtype_enabled,
        None if int8 is None else int8.scales, None if int8 is None else gate_of(base), packed,
    )  # fmt: skip


def ordinary(x: Any) -> bool:
    """Whether the kernels' autograd Function supports a call with this input.

    It does not support functional transforms, forward-mode derivatives, tensor subclasses, nor
    tracing into a graph of torch's own operators.
    """
    return (
        (type(x) is Tensor or type(x) is nn.Parameter)
        and not x.is_nested
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    )


def takes(parts: Parts, x: Tensor) -> bool:
    """Whether the kernels compute this input as PEFT does, result dtype included."""
    device, weight = x.device, parts.weight
    if device != weight.device or device.type == "meta":
        return False
    if torch.is_autocast_enabled(device.type):
        # Autocast casts everything but float64.
        return x.dtype in FLOATS and torch.float64 not in (
            x.dtype,
            weight.dtype,
            parts.lora_a.dtype,
        )
    if parts.packed or parts.scales is not None:
        if x.dtype not in FLOATS:
            return False
    elif x.dtype is not weight.dtype and not (
        parts.widens and x.dtype is torch.float32 and weight.dtype in SIXTEEN_BITS
    ):
        return False
    return parts.casts_input or x.dtype is parts.lora_a.dtype


def _watched(part: Any) -> bool:
    """Whether calling the module does more than its class's forward."""
    return bool(
        part._forward_hooks
        or part._forward_pre_hooks
        or part._backward_hooks
        or part._backward_pre_hooks
        or ("forward" in part.__dict__ and replaces_forward(part))
    )


def replaces_forward(module: Any) -> bool:
    """Whether a module's instance has a forward that is not just its class's.

    accelerate leaves that one on the instance when it removes its hooks.
    """
    own = module.__dict__.get("forward")
    if own is None:
        return False
    same = getattr(own, "__func__", None) is type(module).forward
    return not (same and own.__self__ is module)


def _who_is_watched(parts: dict[str, nn.Module]) -> str:
    name, part = next((n, p) for n, p in parts.items() if _watched(p))
    if replaces_forward(part):
        return f"the forward of its {name} is replaced on the instance, as accelerate's hooks do"
    return f"its {name} has a hook"
