"""fp32 arithmetic and activations over weights stored in 16 bits, in any model, PEFT or not.

Linear layers and embeddings, where the bytes are, keep their weights and get another forward
(`frozen_linear`). All other 16-bit parameters and buffers become fp32 in place: norms,
convolutions, and weights that are read outside their own module. A saved state dict has them in
their original dtype, so that saved files do not change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from peftlab.fusion.fp32.frozen_linear import PLAIN, SIXTEEN_BITS, WIDE, WideEmbedding
from peftlab.fusion.fp32.rest import Rest, forget_rest, remember_rest, rests_of
from peftlab.fusion.fp32.weight_readers import weights_read_outside


@dataclass(frozen=True, slots=True)
class Widened:
    """A module whose 16-bit tensors became fp32: its name, its class, why another forward does not
    do, and the extra bytes."""

    name: str
    kind: str
    reason: str
    bytes: int


@dataclass(frozen=True, slots=True)
class WidenReport:
    """The layers that widen as they compute, and the modules that were widened.

    `linears` and `embeddings` are names of modules whose weights stay in 16 bits.
    """

    linears: tuple[str, ...]
    embeddings: tuple[str, ...]
    widened: tuple[Widened, ...]

    @property
    def bytes_added(self) -> int:
        """Bytes that the model takes beyond all weights in 16 bits."""
        return sum(module.bytes for module in self.widened)


def widen(model: nn.Module) -> WidenReport:
    """Let a model with 16-bit weights compute in fp32, in place; `narrow` undoes it.

    Names, ties, `requires_grad` and what a state dict holds stay as they were. 16-bit tensors that
    train get their gradients too, in their own dtype; adapters are left alone: PEFT makes them
    fp32. May be called again, and must be called after modules were added. Works on meta models.

    Not for use under bf16 autocast, which brings activations back to 16 bits. `model.dtype` remains
    that of the first parameter, whichever it is: pass inputs in fp32. `save_pretrained` writes that
    dtype into config.json; `narrow` first where the first parameter was widened.
    """
    readers = weights_read_outside(model)
    modules = tuple(_own_modules(model))
    reasons = {m: why for _, m in modules if (why := _why_widen(m, readers)) is not None}
    rests: dict[int, Rest] = {
        id(tensor): rest for _, module in modules for tensor, rest in rests_of(module).values()
    }
    for module, reason in reasons.items():
        for tensor in _tensors(module).values():
            if tensor.dtype in SIXTEEN_BITS:
                rests.setdefault(id(tensor), Rest(tensor.dtype, reason))
    for _, module in modules:
        widened = {n: rests[id(t)] for n, t in _tensors(module).items() if id(t) in rests}
        for name in widened:
            _recast(_tensors(module)[name], torch.float32)
        remember_rest(module, widened)
        if type(module) in WIDE and module not in reasons and _has_16bit_tensor(module):
            module.__class__ = WIDE[type(module)]
    return _report(modules)


def narrow(model: nn.Module) -> None:
    """Undo `widen`: every tensor in its own dtype, every class as it was, no hook left.

    Exact for tensors that did not change; those that were trained are rounded.
    """
    for module in model.modules():
        if type(module) in PLAIN:
            module.__class__ = PLAIN[type(module)]
        for tensor, rest in rests_of(module).values():
            if tensor.dtype is torch.float32:
                _recast(tensor, rest.dtype)
        forget_rest(module)


def _own_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules except adapters' own: of an adapted layer the base, and `modules_to_save`."""
    adapters: set[nn.Module] = set()
    for name, module in model.named_modules():
        parts = module._modules
        if isinstance(module, BaseTunerLayer):
            for part, child in parts.items():
                if child is not None and part != "base_layer":
                    adapters.update(child.modules())
        if module not in adapters:
            yield name, module


def _why_widen(module: nn.Module, readers: dict[nn.Module, str]) -> str | None:
    """Why a module's tensors must be fp32 themselves; None where it has none or is swapped."""
    if not _has_16bit_tensor(module):
        return None
    plain = PLAIN.get(type(module), type(module))
    if plain not in WIDE:
        return f"{plain.__name__} is not one of {', '.join(kind.__name__ for kind in WIDE)}"
    if module in readers:
        return f"{readers[module]} reads the weight itself"
    if "forward" in vars(module) and type(module) is plain:  # a forward set later wraps ours
        return "its forward is replaced on the instance"
    weight = module._parameters.get("weight")
    others = module._parameters.keys() - {"weight", "bias"}
    if weight is None or weight.dtype not in SIXTEEN_BITS or others:
        return "its weight is not a 16-bit parameter of its own"
    return None


def _has_16bit_tensor(module: nn.Module) -> bool:
    return any(tensor.dtype in SIXTEEN_BITS for tensor in _tensors(module).values())


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's own parameters and buffers."""
    own = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in own.items() if tensor is not None}


def _recast(tensor: Tensor, dtype: torch.dtype) -> None:
    """Change a tensor's dtype in place: it stays the same object, so ties hold."""
    if tensor.dtype is dtype:
        return
    gradient, tensor.grad = tensor.grad, None
    tensor.data = tensor.data.to(dtype)
    if gradient is not None:
        tensor.grad = gradient.to(dtype)


def _report(modules: tuple[tuple[str, nn.Module], ...]) -> WidenReport:
    linears: list[str] = []
    embeddings: list[str] = []
    widened: list[Widened] = []
    counted: set[int] = set()
    for name, module in modules:
        kind = PLAIN.get(type(module), type(module))
        rests_in_16_bits = kind in WIDE and _has_16bit_tensor(module)
        if rests_in_16_bits:
            (embeddings if type(module) is WideEmbedding else linears).append(name)
        rested = rests_of(module).values()
        fresh = [tensor for tensor, _ in rested if id(tensor) not in counted]
        counted.update(id(tensor) for tensor in fresh)
        if fresh or (rested and not rests_in_16_bits):
            reason = next(rest.reason for _, rest in rested)
            size = sum(2 * tensor.numel() for tensor in fresh)
            widened.append(Widened(name, kind.__name__, reason, size))
    return WidenReport(tuple(linears), tuple(embeddings), tuple(widened))
