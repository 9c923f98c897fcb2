"""A base model without weights: its parameters, and their names in the checkpoint."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peftlab.errors import CheckFailed
from peftlab.model.checkpoint import Checkpoint
from peftlab.model.quiet import quiet_loading
from peftlab.model.ties import untie_stored

AUTO_CLASSES: Mapping[str, str] = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""Transformers' class for each of PEFT's task types."""


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A model without weights, and its checkpoint's names of the tensors.

    `model` is on meta, `config` as it was built, `folder` has the checkpoint's files. `names`: the
    checkpoint's key of each parameter that is one tensor there; `unread`: keys that are not a
    parameter of this model; `converted`: parameters that Transformers builds from several keys.
    """

    model: nn.Module
    config: Any
    names: Mapping[str, str]
    unread: tuple[str, ...]
    converted: Mapping[str, tuple[str, ...]]
    folder: Path


def skeleton(
    checkpoint: Checkpoint,
    keys: Iterable[str],
    *,
    auto_class: str | None,
    updates: Mapping[str, Any],
    trust_remote_code: bool = False,
) -> Skeleton:
    """The base with the head of `auto_class`, or of its own architecture where that is None.

    `updates` are fields of the configuration. Raises `CheckFailed` where there is no such class.
    """
    import transformers

    config = copy.deepcopy(checkpoint.config)
    for key, value in updates.items():
        setattr(config, key, copy.deepcopy(value))
    arguments: dict[str, Any] = {}
    if auto_class is None:
        known = [getattr(transformers, n, None) for n in config.architectures or ()]
        kind: Any = next((k for k in known if k is not None), transformers.AutoModel)
    else:
        kind = getattr(transformers, auto_class)
    if hasattr(kind, "from_config"):
        arguments["trust_remote_code"] = trust_remote_code
    build = getattr(kind, "from_config", None) or kind._from_config
    try:
        with torch.device("meta"), quiet_loading():
            model: nn.Module = build(copy.deepcopy(config), **arguments)
    except ValueError as error:
        first = str(error).strip().splitlines()[0]
        raise CheckFailed(f"{checkpoint.name} cannot be built: {first}") from None
    untie_stored(model, checkpoint.files)
    names, unread, converted = key_names(model, tuple(keys), model.state_dict())
    return Skeleton(model, config, names, unread, converted, checkpoint.files[0].parent)


def tied_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """All names of each parameter that has several, by each of its names."""
    groups: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups[id(parameter)].append(name)
    return {n: tuple(names) for names in groups.values() if len(names) > 1 for n in names}


def key_names(
    model: Any, keys: tuple[str, ...], here: dict[str, Any]
) -> tuple[dict[str, str], tuple[str, ...], dict[str, tuple[str, ...]]]:
    """A checkpoint's keys by the names `here` of a base's parameters; see `Skeleton`."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    transforms: list[Any] = get_model_conversion_mapping(model)
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    renamings = [t for t in transforms if not isinstance(t, WeightConverter)]
    names: dict[str, str] = {}
    converted: dict[str, tuple[str, ...]] = {}
    unread = []
    for key in keys:
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, here)
        if pattern is not None:
            converted[name] = (*converted.get(name, ()), key)
        elif name in here:
            names[name] = key
        else:
            unread.append(key)
    return names, tuple(unread), converted
