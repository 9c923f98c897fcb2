"""Which parameters a configuration penalises, and what each is drawn to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from torch import nn

from peftlab.config.schema import RegularizationConfig
from peftlab.errors import ConfigError
from peftlab.methods.adapter_files import ADAPTER_NAME, is_adapters
from peftlab.methods.method import Applied
from peftlab.methods.penalties.regularization import Anchored, LoraChange, Regularizer
from peftlab.model.structure import fresh_modules

_WHOLE = f"modules_to_save.{ADAPTER_NAME}"


def regularizer(applied: Applied, settings: RegularizationConfig) -> Regularizer | None:
    """The penalties that `settings` ask of a model, or None where every strength is zero.

    Call it before training moves anything: what is drawn to the checkpoint is remembered now (where
    16 bits hold it exactly, in 16). Raises `ConfigError` where nothing in scope trains, and for
    `l2_sp` of adapters whose change is no product of two factors (DoRA).
    """
    if not settings.penalises:
        return None
    parameters = dict(applied.model.named_parameters())
    names = [n for n in parameters if n in applied.trainable and _in_scope(n, applied, settings)]
    if not names:
        raise ConfigError(
            f"regularization.scope is {settings.scope}, but nothing in it trains under method "
            f"{applied.method.name} for {applied.task}; set it to trainable."
        )
    matrices = tuple(parameters[n] for n in names if parameters[n].dim() > 1)
    if not matrices and (settings.l1 or settings.l2):
        raise ConfigError(
            f"regularization.l1 and l2 are of matrices, but in scope {settings.scope} only vectors "
            f"train, {names[0]} among them; set both to 0."
        )
    changes: dict[str, LoraChange] = {}
    anchored: tuple[Anchored, ...] = ()
    if settings.l2_sp:
        start = applied.start
        by = applied.method.taken_out_by
        if by is None and start is not None and start.taken_out:
            by = start.kind  # of the adapter that method.init_from names
        if by is not None:
            raise ConfigError(
                f"regularization.l2_sp draws an adapter's change s B A to zero, but a start by "
                f"{by} is part of that product; set method.init_lora_weights: "
                "true, or regularization.l2_sp=0."
            )
        changes = _changes(applied.model)
        whole = {name: parameters[name] for name in names if not _is_factor(name)}
        _refuse_others(names, whole, changes)
        anchored = tuple(_anchor(applied.model, name, p) for name, p in whole.items())
        changes = {name: change for name, change in changes.items() if name in names}
    return Regularizer(settings, matrices, anchored, tuple(changes.values()))


def _in_scope(name: str, applied: Applied, settings: RegularizationConfig) -> bool:
    match settings.scope:
        case "trainable":
            return True
        case "adapter":
            return isinstance(applied.model, PeftModel) and _WHOLE not in name
        case "head":
            heads = tuple(f"{module}." for module in applied.head_modules)
            return _in_base(name).startswith(heads)


def _in_base(name: str) -> str:
    """A parameter's name in the model that PEFT has wrapped."""
    return name.removeprefix("base_model.model.").replace(f".{_WHOLE}.", ".")


def _is_factor(name: str) -> bool:
    """Whether it takes part in a change of the base's weights; a trained row is a weight itself."""
    return is_adapters(name) and ".trainable_tokens_delta." not in name


def _changes(model: nn.Module) -> dict[str, LoraChange]:
    """Every adapted layer's change, by the name of its A."""
    changes = {}
    for name, module in model.named_modules():
        # AdaLoRA's layers are LoRA layers too, but their change has a third factor.
        if isinstance(module, ParamWrapper) or not isinstance(module, LoraLayer):
            continue
        if isinstance(module.lora_A, nn.ModuleDict) and ADAPTER_NAME in module.lora_A:
            layer: Any = module
            changes[f"{name}.lora_A.{ADAPTER_NAME}.weight"] = LoraChange(
                layer.lora_A[ADAPTER_NAME].weight,
                layer.lora_B[ADAPTER_NAME].weight,
                float(layer.scaling[ADAPTER_NAME]),
            )
    return changes


def _refuse_others(
    names: Iterable[str],
    whole: Mapping[str, nn.Parameter],
    changes: Mapping[str, LoraChange],
) -> None:
    """Parameters of adapters that are no factors of s B A: that product is not their change."""
    factors = {*changes, *(name.replace(".lora_A.", ".lora_B.") for name in changes)}
    if others := [name for name in names if name not in whole and name not in factors]:
        if "lora_magnitude_vector" in others[0]:
            what, out = "the weight otherwise (DoRA)", "set method.use_dora=false"
        elif others[0].endswith(".bias"):
            what, out = "the output beside it", "set method.lora_bias=false"
        elif not any(part.startswith("lora_") for part in others[0].split(".")):
            what, out = "the weight otherwise", "train by method lora"
        else:
            what, out = "a parameter of several matrices", "leave method.target_parameters out"
        raise ConfigError(
            "regularization.l2_sp draws an adapter's change s B A to zero, but "
            f"{others[0]} changes {what}; {out}, or regularization.l2_sp=0."
        )


def _anchor(model: nn.Module, name: str, parameter: nn.Parameter) -> Anchored:
    """A parameter with its start: the checkpoint's values, or zero for what it did not hold."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if _in_base(name).rpartition(".")[0] in fresh_modules(base):
        return Anchored(parameter, None)
    if _WHOLE in name:
        # PEFT keeps the checkpoint's own beside the copy that trains.
        kept = model.get_parameter(name.replace(_WHOLE, "original_module"))
        return Anchored(parameter, kept.detach())
    return Anchored(parameter, _snapshot(parameter))


def _snapshot(parameter: nn.Parameter) -> torch.Tensor:
    """A copy of the values, in bf16 where they came from there."""
    values = parameter.detach()
    if not values.is_meta:
        narrow = values.to(torch.bfloat16)
        if torch.equal(narrow.to(values.dtype), values):
            return narrow
    return values.clone()
