"""One LoRA layer over an 8-bit weight, what each arithmetic makes of it, and what float64 does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from peftlab_kernels import reference
from peftlab_kernels.int8_format import Int8Rows, Int8Weight, int8_quantize
from peftlab_kernels.protocol import LoraForward, LoraGradients, Needs
from peftlab_kernels.triton.backend import TritonKernels
from peftlab_kernels.triton.configurations import target_of
from peftlab_kernels.triton.int8_backend import TritonInt8Kernels
from peftlab_kernels.triton.quantize import quantize_rows
from tests.kernels.triton.layers import ALL, SCALING, Layer


@dataclass
class DequantizedLayer(Layer):
    """`Layer` with its weight in 8 bits, as tensors `codes` and `scales`: w8a16."""

    def __post_init__(self) -> None:
        super().__post_init__()
        weight = self.tensors.pop("weight")
        self.tensors["codes"], self.tensors["scales"] = int8_quantize(weight)

    def weight(self) -> Int8Weight:
        return Int8Weight(self.tensors["codes"], self.tensors["scales"])

    def dequantized(self) -> Tensor:
        """The weight in float64."""
        return reference.dequantize_rows(self.tensors["codes"], self.tensors["scales"].double())

    def forward(self) -> LoraForward:
        t = self.tensors
        torch.manual_seed(7)
        return TritonKernels(self.base, self.target).forward(
            t["x"], self.weight(), t["bias"] if self.bias else None, t["lora_a"], t["lora_b"],
            scaling=SCALING, dropout=self.dropout, transposed=False,
        )  # fmt: skip

    def backward(self, out: LoraForward, needs: Needs = ALL) -> LoraGradients:
        t = self.tensors
        return TritonKernels(self.base, self.target).backward(
            t["dy"], t["x"] if needs.lora_a else None, self.weight(), t["lora_a"], t["lora_b"],
            out.h if needs.lora_b else None, out.mask if needs.x or needs.lora_a else None,
            scaling=SCALING, dropout=self.dropout, transposed=False, needs=needs,
        )  # fmt: skip

    def truths(self, mask: Tensor | None, power: int = 1) -> dict[str, Tensor]:
        """Of the weight that the codes stand for."""
        wide = {name: tensor.double() for name, tensor in self.tensors.items()}
        wide["weight"] = self.dequantized()
        return self._of({name: tensor**power for name, tensor in wide.items()}, mask, power)

    def _of(self, t: dict[str, Tensor], mask: Tensor | None, power: int) -> dict[str, Tensor]:
        keep = self.keep(mask)
        layer = (t["x"], t["weight"], t["lora_a"], t["lora_b"])
        given = {"scaling": SCALING**power, "keep": None if keep is None else keep**power}
        actual = reference.lora_linear_backward(t["dy"], *layer, **given)
        return {
            "y": reference.lora_linear(*layer, bias=t["bias"] if self.bias else None, **given),
            "dx": actual.x, "dA": actual.lora_a, "dB": actual.lora_b,
        }  # fmt: skip


@dataclass
class Int8Layer(DequantizedLayer):
    """The same with x and dy in 8 bits: w8a8."""

    rows: Int8Rows | None = None
    """The x of the last forward."""

    def forward(self) -> LoraForward:
        t = self.tensors
        torch.manual_seed(7)
        kernels = TritonInt8Kernels(self.target)
        self.rows = kernels.quantize(t["x"])
        return kernels.forward(
            self.rows, self.weight(), t["bias"] if self.bias else None, t["lora_a"], t["lora_b"],
            dtype=self.dtype, scaling=SCALING, dropout=self.dropout,
        )  # fmt: skip

    def backward(self, out: LoraForward, needs: Needs = ALL) -> LoraGradients:
        t = self.tensors
        return TritonInt8Kernels(self.target).backward(
            t["dy"], self.rows if needs.lora_a else None, self.weight(), t["lora_a"], t["lora_b"],
            out.h if needs.lora_b else None, out.mask if needs.x or needs.lora_a else None,
            scaling=SCALING, dropout=self.dropout, needs=needs,
        )  # fmt: skip

    def folded_dy(self) -> Tensor:
        """dy with the weight's scales in it, as its codes have it, in float64."""
        dy = self.tensors["dy"].contiguous()
        target = self.target or target_of(dy.device)
        codes, steps = quantize_rows(dy, self.tensors["scales"].contiguous(), target=target)
        return codes.double() * steps.double().unsqueeze(1)

    def truths(self, mask: Tensor | None, power: int = 1) -> dict[str, Tensor]:
        """Of the codes that were made of x and dy."""
        assert self.rows is not None
        codes, steps = self.rows
        wide = {
            "x": codes.double() * steps.double().unsqueeze(1), "weight": self.dequantized(),
            "lora_a": self.tensors["lora_a"].double(), "lora_b": self.tensors["lora_b"].double(),
            "dy": self.tensors["dy"].double(), "bias": self.tensors["bias"].double(),
        }  # fmt: skip
        actual = self._of({name: tensor**power for name, tensor in wide.items()}, mask, power)
        base = wide["dy"] ** power @ wide["weight"] ** power
        folded = self.folded_dy() ** power @ self.tensors["codes"].double() ** power
        return actual | {"dx": actual["dx"] - base + folded}
