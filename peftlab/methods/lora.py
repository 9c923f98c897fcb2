"""LoRA by PEFT: the configuration, the wrapped model, and a check that it trains what it should."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftlab.config.schema import LoraMethod, QLoraMethod
from peftlab.errors import CheckFailed
from peftlab.methods.targets import resolve_saved, resolve_targets
from peftlab.methods.task_kind import peft_type
from peftlab.model.quantized import holds_8bit

ADAPTER = "default"


@dataclass(frozen=True, slots=True)
class Adapted:
    """The PEFT model, the parameters that train, and the base's modules that train whole."""

    model: PeftModel
    names: frozenset[str]
    targets: tuple[str, ...]
    saved: tuple[str, ...]


def adapt(
    model: nn.Module, method: LoraMethod | QLoraMethod, task: str, tokens: Sequence[int] = ()
) -> Adapted:
    """Put a fresh adapter on the model; A is drawn from torch's generator, B is zero.

    `tokens` are ids whose rows of the input embeddings train with it, from where they stand.

    Raises `CheckFailed` for targets that mean nothing, and where PEFT did another thing than asked.
    """
    saved = resolve_saved(model, method.modules_to_save, task)
    targets = resolve_targets(model, method.target_modules, saved)
    config = LoraConfig(
        task_type=peft_type(task, model),
        r=method.r,
        lora_alpha=_whole(method.alpha),
        lora_dropout=method.dropout,
        target_modules=list(targets),
        modules_to_save=list(saved) or None,
        trainable_token_indices=list(tokens) or None,
        use_rslora=method.use_rslora,
        use_dora=isinstance(method, LoraMethod) and method.use_dora,
        fan_in_fan_out=any(isinstance(model.get_submodule(n), Conv1D) for n in targets),
        bias="none",
    )
    with warnings.catch_warnings():
        # A model that mixes Conv1D and Linear gets the flag layer by layer, each with a warning.
        warnings.filterwarnings("ignore", message=r"fan_in_fan_out is set to")
        warnings.filterwarnings("ignore", category=FutureWarning)  # PEFT calling Transformers
        peft_model: Any = get_peft_model(model, config, adapter_name=ADAPTER)
    if holds_8bit(model):
        peft_model.base_model._check_merge_allowed = _refuse_merging
    # PEFT shortens the names into a set, whose order on disk would differ from run to run.
    settings = peft_model.peft_config[ADAPTER]
    settings.target_modules = sorted(settings.target_modules)
    adapted = {
        name.removeprefix("base_model.model.")
        for name, module in peft_model.named_modules()
        if isinstance(module, LoraLayer)
    }
    if adapted != set(targets):
        wrong = sorted(adapted ^ set(targets))
        raise CheckFailed(
            f"PEFT adapted other layers than asked for, {wrong[0]} among them; name "
            "method.target_modules by patterns."
        )
    names = frozenset(name for name, _ in peft_model.named_parameters() if is_adapter(name))
    trained = {name for name, p in peft_model.named_parameters() if p.requires_grad}
    if trained != names:
        wrong = sorted(trained ^ names)
        raise CheckFailed(f"PEFT trains other parameters than asked for, {wrong[0]} among them.")
    return Adapted(peft_model, names, targets, saved)


def is_adapter(name: str) -> bool:
    """Whether a PEFT model's parameter belongs to the adapter, whole saved modules included."""
    parts = name.split(".")
    own = ("lora_", "trainable_tokens_delta")
    return any(part.startswith(own) for part in parts) or f"modules_to_save.{ADAPTER}" in name


def _refuse_merging() -> None:
    """What PEFT asks before it merges: it would add to int8 codes as if they were weights."""
    raise ValueError(
        "the base's weights are 8-bit codes, into which no adapter can be merged; merge it into "
        "the 16-bit checkpoint that the base was made from"
    )


def _whole(alpha: float) -> Any:
    """PEFT writes alpha as it gets it; readers of adapter_config.json expect an integer."""
    return int(alpha) if float(alpha).is_integer() else alpha
