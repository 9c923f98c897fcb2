"""The base's biases that train beside the factors (`method.bias`)."""

from __future__ import annotations

from collections.abc import Iterable

from peft import PeftModel
from torch import nn

from peftlab.errors import CheckFailed
from peftlab.methods.freeze import freeze_these


def is_bias(name: str, which: str) -> bool:
    """Whether a parameter of PEFT's model is a bias that trains where `method.bias` is `which`."""
    if which == "all":
        # Not `relative_attention_bias.weight`, which is a table.
        return name.endswith(".bias") and ".original_module." not in name
    only = name.endswith(".base_layer.bias") and ".token_adapter." not in name
    return which == "lora_only" and only


def check_biases(adapted: PeftModel, which: str) -> None:
    """PEFT trains no bias where there is none, and those of modules that it replaced.

    Raises `CheckFailed` for the first; the others are frozen.
    """
    replaced = [n for n, _ in adapted.named_parameters() if ".original_module." in n]
    freeze_these(adapted, replaced)
    names = [name for name, _ in adapted.named_parameters()]
    biases = [name for name in names if is_bias(name, which) and "lora_" not in name]
    if not biases:
        where = "the adapted layers have" if which == "lora_only" else "it has"
        raise CheckFailed(
            f"method.bias is {which}, but of "
            f"{type(adapted.get_base_model()).__name__} {where} no bias; leave it out."
        )
    widen_norms(adapted, biases)


def widen_norms(adapted: PeftModel, trainable: Iterable[str]) -> None:
    """Norms take weight and bias of one dtype, and what trains is fp32: widen their weights."""
    for name in trainable:
        module, _, own = name.rpartition(".")
        weight = getattr(adapted.get_submodule(module), "weight", None) if own == "bias" else None
        if isinstance(weight, nn.Parameter) and weight.ndim == 1:
            weight.data = weight.data.float()
