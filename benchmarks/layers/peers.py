"""The rows of comparisons: our layer, PEFT's variants, a plain autograd Function, the base.

All peers of a case compute over the same weight, and train adapters of the same values. `ours` is
PEFT's layer after `peftlab.fuse`; where a row says nothing else, adapters are fp32, as PEFT makes
them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.layers.bare_layers import IntegerProducts, PlainLayer
from benchmarks.layers.counting import Counts, count
from benchmarks.layers.layer_case import SCALING, Case, Inputs, Weights, inputs_of


class Holder(nn.Module):
    """A model of one layer, as PEFT wants one."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer


class UnderAutocast(nn.Module):
    """A layer called under autocast to x's dtype; fp32 needs none."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """As the layer."""
        with torch.autocast(x.device.type, x.dtype, enabled=x.dtype is not torch.float32):
            y: Tensor = self.layer(x)
        return y


def frozen(case: Case, weights: Weights) -> nn.Module:
    """The base layer alone."""
    layer = nn.Linear(case.in_features, case.out_features, bias=False, device="meta")
    layer.weight = nn.Parameter(weights.weight, requires_grad=False)
    return layer


def adapted(
    case: Case, weights: Weights, *, cast_adapters: bool = True, fuse: str | None = None
) -> nn.Module:
    """PEFT's layer over the weight, fused with the activations that `fuse` says."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=case.rank, lora_alpha=SCALING * case.rank, lora_dropout=case.dropout,
        target_modules=["layer"],
    )  # fmt: skip
    model = get_peft_model(
        Holder(frozen(case, weights)), config, autocast_adapter_dtype=cast_adapters
    )
    layer: Any = model.base_model.model.layer  # type: ignore[union-attr]
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(weights.lora_a)
        layer.lora_B["default"].weight.copy_(weights.lora_b)
    if fuse is not None:
        from peftlab.fusion import fuse as fuse_model

        report = fuse_model(model, activations=fuse)  # type: ignore[arg-type]
        if report.not_fused:
            raise RuntimeError(str(report))
    module: nn.Module = layer.train()
    return module


@dataclass(frozen=True, slots=True)
class Peer:
    """How a row's layer is made, and the dtype of its activations if it is not the case's."""

    build: Callable[[Case, Weights], nn.Module]
    activations: torch.dtype | None = None


def _in_fp32(case: Case, weights: Weights) -> nn.Module:
    return adapted(case, weights._replace(weight=weights.weight.float()))


def _compiled(case: Case, weights: Weights) -> nn.Module:
    compiled: Any = torch.compile(adapted(case, weights), dynamic=False)
    module: nn.Module = compiled
    return module


def _over_8_bits(
    case: Case, weights: Weights, *, threshold: float | None = None, arithmetic: str | None = None
) -> nn.Module:
    """PEFT's layer over the weight in 8 bits: bitsandbytes' of a threshold, or ours, fused."""
    from peft import LoraConfig, get_peft_model

    if arithmetic is not None:
        from peftlab_kernels.int8_linear import Int8Linear

        base: nn.Module = Int8Linear.from_weight(weights.weight)
    else:
        import bitsandbytes as bnb

        base = bnb.nn.modules.Linear8bitLt(
            case.in_features, case.out_features, bias=False, has_fp16_weights=False,
            threshold=threshold or 0.0,
        )  # fmt: skip
        base.load_state_dict({"weight": weights.weight})
        moved: Any = base
        base = moved.to(case.device).requires_grad_(False)
    holder: Any = Holder(base)
    holder.is_loaded_in_8bit = arithmetic is None
    config = LoraConfig(
        r=case.rank, lora_alpha=SCALING * case.rank, lora_dropout=case.dropout,
        target_modules=["layer"],
    )  # fmt: skip
    model = get_peft_model(holder, config)
    layer: Any = model.base_model.model.layer  # type: ignore[union-attr]
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(weights.lora_a)
        layer.lora_B["default"].weight.copy_(weights.lora_b)
    if arithmetic is not None:
        from peftlab.fusion import fuse as fuse_model

        report = fuse_model(model, arithmetic=arithmetic)  # type: ignore[arg-type]
        if report.not_fused:
            raise RuntimeError(str(report))
    module: nn.Module = layer.train()
    return module


INT8_PEERS: Mapping[str, Peer] = {
    "ours, w8a8": Peer(lambda case, w: _over_8_bits(case, w, arithmetic="w8a8")),
    "ours, w8a16": Peer(lambda case, w: _over_8_bits(case, w, arithmetic="w8a16")),
    "bnb+PEFT": Peer(lambda case, w: _over_8_bits(case, w, threshold=6.0)),
    "bnb+PEFT, threshold 0": Peer(lambda case, w: _over_8_bits(case, w, threshold=0.0)),
    "integer products alone": Peer(IntegerProducts),
}
"""Rows over a base in 8 bits; x and dy have the case's dtype."""


PEERS: Mapping[str, Peer] = {
    "ours": Peer(lambda case, w: adapted(case, w, fuse="keep")),
    "ours, 16-bit adapters": Peer(
        lambda case, w: adapted(case, w, fuse="keep", cast_adapters=False)
    ),
    "ours, fp32 activations": Peer(
        lambda case, w: adapted(case, w, fuse="fp32"), activations=torch.float32
    ),
    "plain addmm_": Peer(PlainLayer),
    "PEFT": Peer(adapted),
    "PEFT, 16-bit adapters": Peer(lambda case, w: adapted(case, w, cast_adapters=False)),
    "PEFT, autocast": Peer(lambda case, w: UnderAutocast(adapted(case, w))),
    "PEFT, compiled": Peer(_compiled),
    "PEFT, fp32": Peer(_in_fp32, activations=torch.float32),
    "frozen base": Peer(frozen),
}
"""Every row, by the name it has in tables and results."""


class LayerStep:
    """A layer with inputs: forward, or forward and backward, at a call.

    With several sets of inputs each call takes the next, so that none lies in a cache.
    """

    def __init__(self, layer: nn.Module, inputs: Inputs) -> None:
        self.layer = layer
        self.leaves = [p for p in layer.parameters() if p.requires_grad]
        self.inputs = inputs
        self._calls = 0

    def rewind(self) -> None:
        """Take the first set of inputs next."""
        self._calls = 0

    def forward(self) -> Tensor:
        """The output `[M, N]`, with its graph."""
        y: Tensor = self.layer(self.inputs[self._calls % len(self.inputs)][0])
        return y

    def __call__(self) -> tuple[Tensor, ...]:
        """Forward and backward: the gradients of x, A and B."""
        x, dy = self.inputs[self._calls % len(self.inputs)]
        grads = torch.autograd.grad(self.forward(), [x, *self.leaves], dy)
        self._calls += 1
        return grads

    def counts(self) -> Counts:
        """The counts of one call."""
        return count(self.forward, [*self.layer.parameters(), *self.layer.buffers()])


def step_of(name: str, case: Case, weights: Weights, sets: int = 1) -> LayerStep:
    """The step of a row of `PEERS`."""
    peer = PEERS[name] if name in PEERS else INT8_PEERS[name]
    inputs = inputs_of(case, peer.activations or case.dtype, sets)
    return LayerStep(peer.build(case, weights), inputs)
