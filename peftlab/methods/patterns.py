"""PEFT's patterns, such as `rank_pattern`: regular expressions for the ends of layers' names.

The first that matches counts, and PEFT sorts them by their text when it saves a configuration. An
adapter that was trained by one pattern would be reloaded by another: with another rank, which does
not load, or with another alpha, which loads and answers otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from peft import PeftModel
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer

from peftlab.errors import CheckFailed

_PREFIX = "base_model.model."


def pattern_for(patterns: Iterable[str], name: str) -> str | None:
    """The first pattern for a name, as PEFT chooses it."""
    return next((p for p in patterns if re.match(rf"(.*\.)?({p})$", name)), None)


def adapted_names(adapted: PeftModel) -> tuple[str, ...]:
    """The base's names of what has an adapter: layers, and parameters with one of their own.

    Rows of embeddings that train (`trainable_token_indices`) are none.
    """
    names = []
    for name, module in adapted.named_modules():
        if isinstance(module, ParamWrapper):
            owner = name.removeprefix(_PREFIX).replace(".base_layer", "")
            names.append(f"{owner}.{module.parameter_name}")
        elif isinstance(module, BaseTunerLayer) and not isinstance(module, TrainableTokensLayer):
            names.append(name.removeprefix(_PREFIX))
    return tuple(names)


def keep_meaning(config: Any, names: Sequence[str]) -> None:
    """Write those patterns of a configuration by whole names that sorting would give other layers.

    Raises `CheckFailed` where whole names do not tell the layers apart either.
    """
    for key, patterns in vars(config).items():
        if key.endswith("_pattern") and isinstance(patterns, dict) and patterns:
            setattr(config, key, sortable(key, patterns, names))


def sortable(key: str, patterns: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The patterns themselves if they mean the same when sorted, else one for each layer's name.

    `names` are those of all adapted layers. Raises `CheckFailed` as `keep_meaning`.
    """
    wanted = {name: patterns[p] for name in names if (p := pattern_for(patterns, name)) is not None}

    def is_kept_by(found: Mapping[str, Any]) -> bool:
        chosen = {name: pattern_for(sorted(found), name) for name in names}
        return wanted == {name: found[p] for name, p in chosen.items() if p is not None}

    for found in (dict(patterns), dict(sorted(wanted.items()))):
        if is_kept_by(found):
            return found
    raise CheckFailed(
        f"method.{key} has patterns {', '.join(map(repr, patterns))}, of which several match one "
        "layer: PEFT sorts them when it saves, and would reload the adapter by another; write them "
        "so that each layer is matched by one."
    )
