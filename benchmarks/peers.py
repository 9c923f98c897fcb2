"""LoRA's linear layer by whom it is compared: ours, PEFT's in its ways, a plain Function, the base.

All peers of a case compute over the same weight, and train adapters of the same values. `ours` is
PEFT's layer after `peftlab.fuse`; where a row says nothing else, adapters are fp32, as PEFT makes
them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from benchmarks.counting import Counts, count

SCALING = 2
SHORT = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True, slots=True)
class Case:
    """One layer and its input: x [rows, in_features] of `dtype`, as the frozen weight is."""

    rows: int
    in_features: int
    out_features: int
    rank: int = 16
    dropout: float = 0.0
    dtype: torch.dtype = torch.bfloat16
    device: str = "cpu"

    def __str__(self) -> str:
        return (
            f"{SHORT[self.dtype]} M={self.rows} {self.in_features}>{self.out_features} "
            f"r={self.rank} p={self.dropout:g}"
        )


class Weights(NamedTuple):
    """`weight [N, K]` of the case's dtype, `lora_a [R, K]` and `lora_b [N, R]` in fp32."""

    weight: Tensor
    lora_a: Tensor
    lora_b: Tensor


def weights_of(case: Case, seed: int = 0) -> Weights:
    """Random values of a trained model's size; B is not zero, so that no product is trivial."""
    draw = torch.Generator(case.device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, device=case.device) * 0.02

    return Weights(
        normal(case.out_features, case.in_features).to(case.dtype),
        normal(case.rank, case.in_features),
        normal(case.out_features, case.rank),
    )


class PlainAddmm(torch.autograd.Function):
    """What one writes in an afternoon: torch's products, the low-rank parts added in place.

    Torch's own dropout, whose result and boolean mask are kept. A fair peer: no copy of x, no
    gradient of the weight.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, lora_a: Tensor, lora_b: Tensor, dropout: float
    ) -> Tensor:
        """`x [M, K]`, `weight [N, K]`, `lora_a [R, K]`, `lora_b [N, R]` -> `[M, N]` as x."""
        a, b = lora_a.to(x.dtype), lora_b.to(x.dtype)
        dropped, kept = torch.native_dropout(x, dropout, True) if dropout else (x, None)
        h = (dropped @ a.T).mul_(SCALING)
        y = F.linear(x, weight).addmm_(h, b.T)
        ctx.save_for_backward(dropped, kept, weight, a, b, h)
        ctx.dropout, ctx.dtypes = dropout, (lora_a.dtype, lora_b.dtype)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, A and B."""
        dropped, kept, weight, a, b, h = ctx.saved_tensors
        g = (dy @ b).mul_(SCALING)
        dx = dy @ weight
        if kept is None:
            dx.addmm_(g, a)
        else:
            dx.add_((g @ a).mul_(kept), alpha=1 / (1 - ctx.dropout))
        # On a CPU dy.T @ h would be ten times slower.
        da, db = g.T @ dropped, (h.T @ dy).T
        return dx, None, da.to(ctx.dtypes[0]), db.to(ctx.dtypes[1]), None


class PlainLayer(nn.Module):
    """`PlainAddmm` as a layer."""

    def __init__(self, case: Case, weights: Weights) -> None:
        super().__init__()
        self.weight = nn.Parameter(weights.weight, requires_grad=False)
        self.lora_a = nn.Parameter(weights.lora_a.clone())
        self.lora_b = nn.Parameter(weights.lora_b.clone())
        self.dropout = case.dropout

    def forward(self, x: Tensor) -> Tensor:
        """`[M, K] -> [M, N]`."""
        y: Tensor = PlainAddmm.apply(  # type: ignore[no-untyped-call]
            x, self.weight, self.lora_a, self.lora_b, self.dropout
        )
        return y


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
    found: nn.Module = layer.train()
    return found


@dataclass(frozen=True, slots=True)
class Peer:
    """How a row's layer is made, and the dtype of its activations where it is not the case's."""

    build: Callable[[Case, Weights], nn.Module]
    activations: torch.dtype | None = None


def _in_fp32(case: Case, weights: Weights) -> nn.Module:
    return adapted(case, weights._replace(weight=weights.weight.float()))


def _compiled(case: Case, weights: Weights) -> nn.Module:
    compiled: Any = torch.compile(adapted(case, weights), dynamic=False)
    found: nn.Module = compiled
    return found


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
    found: nn.Module = layer.train()
    return found


class IntegerProducts(nn.Module):
    """The two integer products of a w8a8 layer and nothing else: what it can hardly beat."""

    def __init__(self, case: Case, weights: Weights) -> None:
        super().__init__()
        from peftlab_kernels.cpu_arithmetic import int8_engine
        from peftlab_kernels.int8_format import int8_quantize

        self.codes = int8_quantize(weights.weight)[0]
        self.engines = int8_engine("x @ W.T"), int8_engine("dy @ W")

    def forward(self, x: Tensor) -> Tensor:
        """`[M, K] -> [M, N]`, of codes that have nothing to do with x."""
        y: Tensor = _Products.apply(x, self.codes, self.engines)  # type: ignore[no-untyped-call]
        return y


class _Products(torch.autograd.Function):
    """Multiplies codes of x's and dy's shapes, made once."""

    made: ClassVar[dict[tuple[int, int], Tensor]] = {}

    @classmethod
    def rows(cls, like: Tensor) -> Tensor:
        """int8 codes of this shape, within 6 bits for every engine."""
        shape = (like.shape[0], like.shape[1])
        if shape not in cls.made:
            cls.made[shape] = torch.randint(-63, 64, shape, dtype=torch.int8)
        return cls.made[shape]

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, engines: Any) -> Tensor:
        """One product; what it gives is dropped."""
        from peftlab_kernels.int8_products import multiplier

        ctx.codes, ctx.engine, ctx.shape = codes, engines[1], x.shape
        multiplier(engines[0], codes, transposed=False)(_Products.rows(x))
        return x.new_empty(x.shape[0], codes.shape[0])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """The other."""
        from peftlab_kernels.int8_products import multiplier

        multiplier(ctx.engine, ctx.codes, transposed=True)(_Products.rows(dy))
        return dy.new_empty(ctx.shape), None, None


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


Inputs = list[tuple[Tensor, Tensor]]
"""Sets of x [M, K] and dy [M, N]."""


def inputs_of(case: Case, dtype: torch.dtype, sets: int = 1) -> Inputs:
    """Random inputs, the same for everybody; x requires a gradient, as inside a model."""
    draw = torch.Generator(case.device).manual_seed(1)

    def normal(columns: int) -> Tensor:
        return torch.randn(case.rows, columns, generator=draw, device=case.device).to(dtype)

    return [
        (normal(case.in_features).requires_grad_(), normal(case.out_features)) for _ in range(sets)
    ]


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
        found = torch.autograd.grad(self.forward(), [x, *self.leaves], dy)
        self._calls += 1
        return found

    def counts(self) -> Counts:
        """The counts of one call."""
        return count(self.forward, [*self.layer.parameters(), *self.layer.buffers()])


def step_of(name: str, case: Case, weights: Weights, sets: int = 1) -> LayerStep:
    """The step of a row of `PEERS`."""
    peer = PEERS[name] if name in PEERS else INT8_PEERS[name]
    inputs = inputs_of(case, peer.activations or case.dtype, sets)
    return LayerStep(peer.build(case, weights), inputs)
