"""Models with 8-bit layers, ours or bitsandbytes', of one layer or tiny, with LoRA on them."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from peftlab_kernels.int8_linear import Int8Linear

from .common import K, N, R, tiny

KINDS = ("ours", "bitsandbytes")


def eight_bit(kind: str, linear: nn.Linear) -> nn.Module:
    """A frozen 8-bit layer made from a linear one."""
    if kind == "ours":
        return Int8Linear.from_weight(linear.weight, linear.bias)
    import bitsandbytes as bnb

    made = bnb.nn.Linear8bitLt(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        has_fp16_weights=False,
        threshold=6.0,
    )
    made.load_state_dict(linear.state_dict())
    made = made.to("cpu")
    for parameter in made.parameters():
        parameter.requires_grad_(False)
    return made


class OneLayer(nn.Module):
    """`layer` [..., K] -> [..., N] in 8 bits, and the dtype its parameters say it has."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        linear = nn.Linear(K, N)
        nn.init.normal_(linear.weight, std=0.02)
        nn.init.normal_(linear.bias)
        self.layer = eight_bit(kind, linear)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y


def adapted_layer(kind: str, **config: Any) -> Any:
    """A PEFT model of one 8-bit layer whose adapter does something, training."""
    torch.manual_seed(0)
    base: Any = OneLayer(kind)
    base.is_loaded_in_8bit = kind == "bitsandbytes"
    settings = {"r": R, "lora_alpha": 7, "target_modules": ["layer"], "init_lora_weights": False}
    return get_peft_model(base, LoraConfig(**settings | config)).train()


def in_eight_bits(model: nn.Module, kind: str) -> nn.Module:
    """The model with every linear layer but the heads in 8 bits."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and not name.endswith(("classifier", "lm_head")):
            model.set_submodule(name, eight_bit(kind, module))
    return model


def adapted_model(kind: str, family: str = "llama", **config: Any) -> Any:
    """`common.tiny` in 8 bits and fp32 activations, LoRA on its 8-bit layers; training."""
    model: Any = in_eight_bits(tiny(family, torch.float32), kind)
    model.is_loaded_in_8bit = kind == "bitsandbytes"
    names = [n for n, m in model.named_modules() if isinstance(m, Int8Linear) or _theirs(m)]
    settings = {"r": R, "lora_alpha": 7, "target_modules": names, "init_lora_weights": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(model, LoraConfig(**settings | config)).train()


def _theirs(module: nn.Module) -> bool:
    return type(module).__name__ == "Linear8bitLt"
