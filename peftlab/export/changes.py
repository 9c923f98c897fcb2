"""What a trained part changes in its base: which tensors, and how.

Read from names and headers alone. Every tensor of the trained part belongs to one change.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from peftlab.errors import CheckFailed
from peftlab.export.safetensors_files import Stored, stored_tensors
from peftlab.methods.adapter_files import is_adapters

PREFIX = "base_model.model."

_PART = re.compile(
    r"^(?P<module>.+?)\.(?P<part>lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)"
    r"|token_adapter\.trainable_tokens_delta|modules_to_save|base_layer)(?P<rest>\..+)?$"
)
_REFUSED: Mapping[str, str] = {
    "layer_replication": "the base's layers are repeated (layer_replication)",
    "alora_invocation_tokens": "it is active after certain tokens only (aLoRA)",
    "arrow_config": "it mixes several adapters by their input (Arrow)",
    "target_parameters": "it adapts parameters, not layers (target_parameters)",
    "megatron_config": "its layers are Megatron's",
    "loftq_config": "it was trained on a base that LoftQ modified",
}
_NO_MERGE: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "PROMPT_TUNING",
            "P_TUNING",
            "PREFIX_TUNING",
            "CARTRIDGE",
            "MULTITASK_PROMPT_TUNING",
            "CPT",
        ),
        "its virtual tokens are no weights of the base",
    ),
    "ADAPTION_PROMPT": "its prompts are read inside the attention, not by a weight of the base",
    "LILY": "its factors are mixed anew for each input",
    "SHADOW": "what it adds depends on the input, layer by layer",
    "XLORA": "it mixes several adapters by their input",
    "POLY": "it mixes several adapters by the task of each row",
}
"""Types of adapters that no weights of the base can stand for."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Additions to and replacements of a base's tensors, by the base model's names.

    `adapted`: modules with an adapter, each with its tensors by their names below the module;
    `replaced`: whole parameters; `bases`: the base of adapted parameters, where it was saved too (a
    resized table); `rows`: single rows of a parameter, by their indices; `peft`: PEFT's
    configuration, if any. `through_peft`: the adapter's own tensors are not here, because only
    PEFT's whole model merges them.
    """

    source: Path
    adapted: Mapping[str, Mapping[str, Stored]] = field(default_factory=dict)
    replaced: Mapping[str, Stored] = field(default_factory=dict)
    bases: Mapping[str, Stored] = field(default_factory=dict)
    rows: Mapping[str, tuple[tuple[int, ...], Stored]] = field(default_factory=dict)
    peft: Any = None
    through_peft: bool = False

    @property
    def tensors(self) -> int:
        """How many tensors the trained part has."""
        whole = len(self.replaced) + len(self.bases) + len(self.rows)
        return whole + sum(len(parts) for parts in self.adapted.values())


def adapter_changes(folder: Path, weights: Path) -> Changes:
    """The changes of a PEFT adapter. Raises `CheckFailed` for one that cannot be merged."""
    from peft import PeftConfig

    try:
        config: Any = PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckFailed(f"{folder}/adapter_config.json cannot be used: {error}.") from None
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind != "LORA":
        return _through_peft(folder, weights, config, kind)
    for key, why in _REFUSED.items():
        if getattr(config, key, None):
            raise CheckFailed(f"{folder} cannot be merged into its base: {why}.")
    began = str(config.init_lora_weights)
    if began == "loftq":
        raise CheckFailed(f"{folder} cannot be merged into its base: {_REFUSED['loftq_config']}.")
    if began in ("corda", "lora_ga") or began.startswith("pissa_niter"):
        raise CheckFailed(
            f"{folder} cannot be merged into its base: it began as {began} and was saved without "
            "that start, which cannot be computed again. Save it where it was trained, by PEFT's "
            "path_initial_model_for_weight_conversion."
        )
    adapted: dict[str, dict[str, Stored]] = defaultdict(dict)
    replaced: dict[str, Stored] = {}
    bases: dict[str, Stored] = {}
    rows: dict[str, tuple[tuple[int, ...], Stored]] = {}
    for key, tensor in stored_tensors(weights).items():
        if not key.startswith(PREFIX):
            raise CheckFailed(f"{weights} holds {key}, which is not a name of PEFT's.")
        name = key.removeprefix(PREFIX)
        match = _PART.match(name)
        part = "" if match is None else match["part"]
        whole = "" if match is None else match["module"] + (match["rest"] or "")
        if match is None:
            replaced[name] = tensor
        elif part == "modules_to_save":
            replaced[whole] = tensor
        elif part == "base_layer":
            bases[whole] = tensor
        elif part.startswith("token_adapter"):
            rows[f"{match['module']}.weight"] = (_indices(config, match["module"]), tensor)
        else:
            adapted[match["module"]][part + (match["rest"] or "")] = tensor
    # A table that was not itself adapted, or a bias that trained, was saved as a whole.
    for name in [n for n in bases if _stands_alone(n, adapted)]:
        replaced[name] = bases.pop(name)
    if not (adapted or replaced or rows):
        raise CheckFailed(f"{weights} holds no tensor.")
    return Changes(folder, adapted, replaced, bases, rows, config)


def _stands_alone(name: str, adapted: Mapping[str, Mapping[str, Stored]]) -> bool:
    """Whether a parameter of a wrapped layer takes part in no merging."""
    module, _, own = name.rpartition(".")
    parts = adapted.get(module)
    return parts is None or (own == "bias" and not any(p.endswith(".bias") for p in parts))


def _through_peft(folder: Path, weights: Path, config: Any, kind: str) -> Changes:
    """The whole modules of an adapter of another type than LoRA. Raises `CheckFailed`."""
    why = _NO_MERGE.get(kind)
    if getattr(config, "sample_at_inference", False):
        why = "it draws noise for each input (sample_at_inference)"
    if why is not None:
        raise CheckFailed(f"{folder} is {kind}, which cannot be merged into its base: {why}.")
    whole = {
        name.removeprefix(PREFIX).replace(".modules_to_save.", "."): tensor
        for name, tensor in stored_tensors(weights).items()
        if not is_adapters(name)
    }
    return Changes(folder, replaced=whole, peft=config, through_peft=True)


def _indices(config: Any, module: str) -> tuple[int, ...]:
    """Which rows of a table were trained, one by one."""
    indices = config.trainable_token_indices
    if isinstance(indices, dict):
        # A whole name is longer than any of its ends.
        names = [n for n in indices if module == n or module.endswith(f".{n}")]
        indices = indices[max(names, key=len)] if names else None
    if not indices:
        raise CheckFailed(
            f"the adapter's configuration does not name the trained rows of {module}."
        )
    return tuple(int(index) for index in indices)


def refuse_lost_bias(changes: Changes, model: torch.nn.Module) -> None:
    """Raise `CheckFailed` for a layer whose adapter has a bias and which has none itself."""
    for module, parts in changes.adapted.items():
        if "lora_B.bias" in parts and getattr(model.get_submodule(module), "bias", None) is None:
            raise CheckFailed(
                f"{changes.source} has a lora_bias on {module}, which has no bias to merge it "
                "into; keep it as an adapter, or train without lora_bias."
            )


def whole_changes(folder: Path, weights: Path) -> Changes:
    """The changes of a part of whole parameters, by the model's own names."""
    return Changes(folder, replaced=stored_tensors(weights))
