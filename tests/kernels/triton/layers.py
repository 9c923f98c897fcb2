"""One LoRA layer's tensors, what the kernels make of them, and what float64 does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from peftlab_kernels import reference
from peftlab_kernels.protocol import LoraForward, LoraGradients, Needs
from peftlab_kernels.triton.backend import TritonKernels
from peftlab_kernels.triton.configurations import Target
from peftlab_kernels.triton.philox import dropout_of, write_mask

BOUND = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-2}
"""Relative Frobenius errors, as the kernels' design bounds them."""

SCALING = 1.7
ALL = Needs(True, True, True)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Standard normal numbers, the same for the same shape and seed."""
    draw = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)


def error(actual: Tensor | None, truth: Tensor, size: Tensor | None = None) -> float:
    """Relative Frobenius error; NaN, which fails every bound, if anything is NaN.

    `size` is how large the truth is where its terms do not cancel: rounding is in proportion to
    that, whatever becomes of a result that hangs on one number.
    """
    assert actual is not None
    assert actual.shape == truth.shape
    norm = truth.norm() if size is None else torch.maximum(truth.norm(), size.norm())
    return float((actual.double() - truth).norm() / norm)


@dataclass
class Layer:
    """`shape` is M, K, N, R."""

    shape: tuple[int, int, int, int]
    dtype: torch.dtype = torch.float32
    adapter: torch.dtype = torch.float32
    weight_dtype: torch.dtype | None = None
    transposed: bool = False
    bias: bool = True
    base: Literal["epilogue", "cublas"] = "epilogue"
    target: Target | None = None
    dropout: float = 0.0
    device: str = "cpu"
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        m, k, n, r = self.shape
        weight = normal(n, k, dtype=self.weight_dtype or self.dtype)
        self.tensors = {
            "x": normal(m, k, dtype=self.dtype),
            "weight": weight.T.contiguous() if self.transposed else weight,
            "lora_a": normal(r, k, dtype=self.adapter),
            "lora_b": normal(n, r, dtype=self.adapter),
            "bias": normal(n, dtype=self.dtype),
            "dy": normal(m, n, dtype=self.dtype, seed=1),
        }
        self.tensors = {name: tensor.to(self.device) for name, tensor in self.tensors.items()}

    def forward(self) -> LoraForward:
        t = self.tensors
        torch.manual_seed(7)
        return TritonKernels(self.base, self.target).forward(
            t["x"], t["weight"], t["bias"] if self.bias else None, t["lora_a"], t["lora_b"],
            scaling=SCALING, dropout=self.dropout, transposed=self.transposed,
        )  # fmt: skip

    def backward(self, out: LoraForward, needs: Needs = ALL) -> LoraGradients:
        t = self.tensors
        return TritonKernels(self.base, self.target).backward(
            t["dy"], t["x"] if needs.lora_a else None, t["weight"], t["lora_a"], t["lora_b"],
            out.h if needs.lora_b else None, out.mask if needs.x or needs.lora_a else None,
            scaling=SCALING, dropout=self.dropout, transposed=self.transposed, needs=needs,
        )  # fmt: skip

    def keep(self, mask: Tensor | None) -> Tensor | None:
        """D in float64."""
        if not self.dropout:
            return None
        dropout = dropout_of(mask, self.dropout)
        m, k = self.tensors["x"].shape
        return write_mask(dropout, m, k, torch.device(self.device)).double() * dropout.scale

    def truths(self, mask: Tensor | None, power: int = 1) -> dict[str, Tensor]:
        """In float64, of every number's power: each term of each sum then is that power too."""
        t = {name: tensor.double() ** power for name, tensor in self.tensors.items()}
        keep = self.keep(mask)
        weight = t["weight"].T if self.transposed else t["weight"]
        layer = (t["x"], weight, t["lora_a"], t["lora_b"])
        given = {"scaling": SCALING**power, "keep": None if keep is None else keep**power}
        bias = t["bias"] if self.bias else None
        actual = reference.lora_linear_backward(t["dy"], *layer, **given)
        return {
            "y": reference.lora_linear(*layer, bias=bias, **given),
            "dx": actual.x, "dA": actual.lora_a, "dB": actual.lora_b,
        }  # fmt: skip

    def errors(self, out: LoraForward, actual: LoraGradients) -> dict[str, float]:
        """Of y and of every gradient."""
        truths, squares = self.truths(out.mask), self.truths(out.mask, power=2)
        results = (out.y, actual.x, actual.lora_a, actual.lora_b)
        return {
            name: error(result, truths[name], squares[name].sqrt())
            for name, result in zip(truths, results, strict=True)
        }

    def check(self) -> None:
        """Run both ways and hold everything to its bound."""
        out = self.forward()
        actual = self.backward(out)
        # A running sum's rounding grows with the root of its terms; the bound is for 1,024.
        bound = BOUND[self.dtype] * max(1.0, max(self.shape[:3]) / 1024) ** 0.5
        errors = self.errors(out, actual)
        assert all(e <= bound for e in errors.values()), f"{errors} beyond {bound}"
        dtypes = (out.y.dtype, actual.x.dtype, actual.lora_a.dtype, actual.lora_b.dtype)
        assert dtypes == (self.dtype, self.dtype, self.adapter, self.adapter)
        assert actual.lora_a.is_contiguous()
        assert actual.lora_b.is_contiguous()
