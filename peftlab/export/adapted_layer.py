"""One adapted layer of the base with its trained adapter, by PEFT's own code, and their merge."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft.tuners import lora

from peftlab.errors import CheckFailed
from peftlab.export.changes import PREFIX, Changes
from peftlab.export.scratch import Scratch
from peftlab.methods.adapter_files import ADAPTER_NAME

_SUMMED = 512 * 1024
"""Elements summed at a time: in fp32 they fit the caches."""


def adapted_module(
    module: str, base: Mapping[str, torch.Tensor], kind: torch.nn.Module, changes: Changes
) -> Any:
    """A PEFT model of one module, under its own name, with its trained adapter.

    `base` has the module's parameters by their names in it; `kind` is the module on meta. Raises
    `CheckFailed` naming adapter tensors that PEFT's layer does not accept.
    """
    from peft import set_peft_model_state_dict

    peft_model = _adapted(_nested(module, kind, base), module, changes.peft)
    tensors = {f"{PREFIX}{module}.{n}": t.read() for n, t in changes.adapted[module].items()}
    _refuse_other_shapes(peft_model, tensors, changes.source)
    loaded: Any = set_peft_model_state_dict(peft_model, tensors)
    lacking = [k for k in loaded.missing_keys if "lora_" in k]
    if loaded.unexpected_keys or lacking:
        wrong = (list(loaded.unexpected_keys) + lacking)[0]
        raise CheckFailed(
            f"{changes.source} does not fit {module}: PEFT's layer and the file differ in {wrong}."
        )
    return peft_model.eval()


def _refuse_other_shapes(
    peft_model: torch.nn.Module, tensors: Mapping[str, torch.Tensor], source: Path
) -> None:
    """Raise `CheckFailed` where the adapter's configuration says another rank than its tensors."""
    own = peft_model.named_parameters()
    expected = {n.replace(f".{ADAPTER_NAME}", ""): tuple(p.shape) for n, p in own}
    for name, tensor in tensors.items():
        if (shape := expected.get(name)) is not None and shape != tuple(tensor.shape):
            raise CheckFailed(
                f"{source} has {name.removeprefix(PREFIX)} of shape {tuple(tensor.shape)}, and its "
                f"adapter_config.json says {shape}. Where several of its patterns match a layer, "
                "the first counts, and PEFT sorts them when it saves; put those that were trained "
                "first, or name each layer by one."
            )


def merged_module(
    module: str,
    base: Mapping[str, torch.Tensor],
    kind: torch.nn.Module,
    changes: Changes,
    scratch: Scratch,
) -> dict[str, torch.Tensor]:
    """The parameters of an adapted module with its adapter merged, bit for bit as PEFT's layer.

    As `adapted_module`; `base` is overwritten, and `scratch` holds the sums.
    """
    peft_model = adapted_module(module, base, kind, changes)
    layer: Any = peft_model.base_model.model.get_submodule(module)
    ordinary = type(layer) is lora.Linear
    if ordinary and not layer.lora_variant and not any(layer.lora_bias.values()):
        # Not `base`: some initialisations, such as PiSSA's, subtract the adapter from the weight.
        weight = layer.get_base_layer().weight.detach()
        return {**base, "weight": _plainly_merged(layer, weight, scratch)}
    bare: Any = peft_model.merge_and_unload()
    merged = bare.get_submodule(module)
    return {name: p.detach() for name, p in merged.named_parameters()}


def _plainly_merged(layer: Any, weight: torch.Tensor, scratch: Scratch) -> torch.Tensor:
    """`W + s B A` in fp32, rounded once, in place: as PEFT sums, several times faster."""
    (name,) = layer.active_adapters
    a, b = (part[name].weight.detach().float() for part in (layer.lora_A, layer.lora_B))
    shape = (b.shape[0], a.shape[1])
    delta = torch.mm(b, a, out=scratch.tensor("delta", shape, torch.float32))
    delta.mul_(layer.scaling[name])
    delta = delta.T if layer.fan_in_fan_out else delta
    wide = torch.promote_types(weight.dtype, torch.float32)
    rows = max(1, _SUMMED // weight.shape[1])
    for start in range(0, weight.shape[0], rows):
        part = weight[start : start + rows]
        total = scratch.tensor("sum", part.shape, wide).copy_(part)
        part.copy_(total.add_(delta[start : start + rows]))
    return weight


def _nested(
    module: str, kind: torch.nn.Module, base: Mapping[str, torch.Tensor]
) -> torch.nn.Module:
    """A model of that one module, under its own name, which determines rank and scaling."""
    layer = copy.deepcopy(kind)
    for name in layer._parameters:
        # A parameter that is not given, such as an unchanged bias, is left out.
        tensor = base.get(name)
        layer._parameters[name] = (
            None if tensor is None else torch.nn.Parameter(tensor, requires_grad=False)
        )
    holder = inner = torch.nn.Module()
    *parents, last = module.split(".")
    for parent in parents:
        made = torch.nn.Module()
        inner.add_module(parent, made)
        inner = made
    inner.add_module(last, layer)
    return holder


def _adapted(holder: torch.nn.Module, module: str, config: Any) -> Any:
    from peft import get_peft_model

    one = copy.deepcopy(config)
    one.target_modules = [module]
    one.exclude_modules = one.layers_to_transform = one.layers_pattern = None
    one.modules_to_save, one.task_type = None, None
    one.trainable_token_indices = None
    if one.init_lora_weights not in ("pissa", "olora"):
        one.init_lora_weights = False  # the initial values are overwritten
    one.eva_config = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(holder, one)
