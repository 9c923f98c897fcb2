"""Which keys a type of PEFT's adapters takes: those of PEFT's own dataclass, but for some.

Importing PEFT imports torch, so it is done only where a configuration asks for such an adapter.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from peftlab.config.checks import problem_at
from peftlab.errors import did_you_mean

REFUSED: Mapping[str, str] = {
    "LORA": "set method.name to lora",
    "XLORA": "it mixes LoRA adapters that were trained before, which a configuration has none of",
    "POLY": "its forward pass needs the number of each row's task, which rows do not carry",
    "MULTITASK_PROMPT_TUNING": (
        "its forward pass needs the number of each row's task, which rows do not carry"
    ),
    "CPT": "its loss weights the tokens of a prompt that is part of its own settings",
}
"""Types that are not trained here, and why."""

_OURS: Mapping[str, str] = {
    "task_type": "follows from task",
    "inference_mode": "follows from what is done with the run",
    "base_model_name_or_path": "is model.name",
    "revision": "is model.revision",
    "auto_mapping": "is PEFT's own note",
    "peft_version": "is the installed PEFT's",
    "token_dim": "is read from the model",
    "num_layers": "is read from the model",
    "num_attention_heads": "is read from the model",
    "num_transformer_submodules": "is read from the model",
    "total_step": "is the number of the run's optimizer steps",
    "fan_in_fan_out": "follows from the kind of each layer",
}
_NOT_TAKEN: Mapping[str, Mapping[str, str]] = {
    "ADALORA": {
        "r": "is ignored by AdaLoRA; set init_r and target_r",
        "use_dora": "is LoRA's",
        "loftq_config": "is LoRA's",
        "layer_replication": "is LoRA's",
        "rank_pattern": "is what AdaLoRA finds while it trains",
        "init_lora_weights": "is LoRA's",
        "target_parameters": "is LoRA's",
        "trainable_token_indices": "is LoRA's",
    },
    "ADAMSS": {"use_asa": "needs a schedule of its own, which peftlab does not run"},
    "VBLORA": {"save_only_topk_weights": "saves an adapter that cannot be loaded to the bit"},
    "PROMPT_TUNING": {"prompt_tuning_init": "is RANDOM: other starts read the base's embeddings"},
}
"""Keys of a type that change nothing, or what peftlab cannot keep."""


def known_types() -> tuple[str, ...]:
    """The types that are trained here, as the installed PEFT has them."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return tuple(kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING if kind.value not in REFUSED)


def config_class(peft_type: str) -> type[Any]:
    """PEFT's dataclass of a type's settings."""
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    found: type[Any] = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(peft_type)]
    return found


def has_key(peft_type: str, key: str) -> bool:
    """Whether PEFT's dataclass has a field of that name."""
    return any(field.name == key for field in dataclasses.fields(config_class(peft_type)))


def check_type(peft_type: str) -> None:
    """Raise a problem at `peft_type` unless it is trained here."""
    if peft_type in REFUSED:
        raise problem_at("peft_type", f"is {peft_type}, which is not trained: {REFUSED[peft_type]}")
    types = known_types()
    if peft_type not in types:
        hint = did_you_mean(peft_type, types) or f"; allowed: {', '.join(types)}"
        raise problem_at("peft_type", f"is {peft_type!r}, no adapter of the installed PEFT{hint}")


def check_keys(peft_type: str, settings: Mapping[str, Any]) -> None:
    """Raise a problem at the first key that the type does not take, or whose value it does not."""
    kind = config_class(peft_type)
    known = {field.name for field in dataclasses.fields(kind) if field.init}
    refused = {**_OURS, **_NOT_TAKEN.get(peft_type, {})}
    free = sorted(known - refused.keys() - {"peft_type"})
    hints: dict[str, Any] | None = None
    for key, value in settings.items():
        if key in known and key in refused:
            why = refused[key]
            raise problem_at(key, f"{why}: leave it out")
        if key not in known:
            hint = did_you_mean(key, {name: f"method.{name}" for name in free}, cutoff=0.5)
            listed = f"the keys of {peft_type} are {', '.join(free)}"
            raise problem_at(key, f"is unknown{hint}" if hint else f"is unknown; {listed}")
        if key == "bias" and value != "none":
            raise problem_at(
                key,
                f"is {value!r}; allowed: none, because the base's biases train by method lora only",
            )
        hints = hints or get_type_hints(kind)
        read(hints[key], key, value)


def converted(peft_type: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that were checked, in the types of PEFT's dataclass: enumerations, tuples."""
    hints = get_type_hints(config_class(peft_type))
    return {key: read(hints[key], key, value) for key, value in settings.items()}


def read(hint: Any, key: str, value: Any) -> Any:
    """A value from YAML as a field of this type takes it. Raises a problem at the key."""
    adapter: TypeAdapter[Any] = TypeAdapter(
        hint, config=None if _has_config(hint) else ConfigDict(arbitrary_types_allowed=True)
    )
    try:
        # Strict JSON keeps numbers and truth values apart, and knows lists for tuples.
        return adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError:
        shown = json.dumps(value)
        raise problem_at(key, f"is {shown}; allowed: {_words(hint)}") from None


def _has_config(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint)


def _words(hint: Any) -> str:
    """A type as PEFT's documentation writes it."""
    text = hint.__name__ if isinstance(hint, type) else str(hint)
    return text.replace("typing.", "").replace("NoneType", "None")
