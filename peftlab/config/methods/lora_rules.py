"""Which values of LoRA's keys go together: each rule is a sentence that names the way out."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from peftlab.config.checks import problem_at

DRAWN = (True, False, "gaussian")
"""Starts that draw the factors and read nothing of the base."""

_NAMES = re.compile(r"\s*[\w.*?-]+(?:\s*,\s*[\w.*?-]+)+\s*")
_NOT_HERE = {
    "loftq": (
        "is loftq: PEFT quantises the base itself for it, and the adapter fits that base alone; "
        "for a quantised base take method qlora"
    ),
    "corda": (
        "is corda, which needs every layer's input covariances, collected by PEFT's "
        "preprocess_corda before training; for a start from the data take eva"
    ),
    "lora_ga": (
        "is lora_ga, which needs the base's gradients, collected by PEFT's preprocess_loraga "
        "before training (without them it starts as plain LoRA); take eva or pissa"
    ),
}
UNKNOWN_KEYS = {
    "layer_replication": "repeats layers over shared weights, which no checkpoint holds merged",
    "loftq_config": "belongs to loftq, whose quantised base peftlab does not make; take qlora",
    "corda_config": "belongs to corda, which needs statistics collected beforehand; take eva",
    "lora_ga_config": "belongs to lora_ga, which needs gradients collected beforehand; take eva",
    "eva_config": "is PEFT's own; peftlab runs EVA with its defaults: set init_lora_weights: eva",
    "megatron_config": "is for Megatron's layers, which peftlab does not load; leave it out",
    "runtime_config": "is no part of an adapter: PEFT never writes it; leave it out",
    "task_type": "is what the task says; set task.name",
    "fan_in_fan_out": "is known from the layers: true for Conv1D alone; leave it out",
    "alora_invocation_tokens": "is aLoRA's, active after these tokens alone, which no merged "
    "model can be; leave it out",
    "use_qalora": "is for GPTQ's layers, which peftlab does not load; take method qlora",
}
"""PEFT's keys that are no keys here, and why."""


def refuse_unknown(data: Any) -> Any:
    """Raise for PEFT's keys of `UNKNOWN_KEYS`, and for starts that cannot be had."""
    if isinstance(data, dict):
        for key, why in UNKNOWN_KEYS.items():
            if key in data:
                raise problem_at(key, why)
        if data.get("target_modules") == "":
            raise problem_at(
                "target_modules",
                "is empty; allowed: auto, all-linear, a list of names or a regular expression",
            )
        given = data.get("init_lora_weights")
        if isinstance(given, str) and given in _NOT_HERE:
            raise problem_at("init_lora_weights", _NOT_HERE[given])
    return data


def split_names(value: Any) -> Any:
    """Names separated by commas as a list: a shell leaves no brackets, and no name has a comma."""
    if isinstance(value, str) and _NAMES.fullmatch(value):
        return [name.strip() for name in value.split(",")]
    return value


def takes_from_base(init: Any) -> bool:
    """Whether a start takes its factors out of the base's weight (PiSSA, OLoRA)."""
    return isinstance(init, str) and (init in ("olora", "pissa") or init.startswith("pissa_niter_"))


def needs_float_base(init: Any) -> bool:
    """Whether a start decomposes the base's weight, or draws in its dtype."""
    return takes_from_base(init) or init in ("mica", "orthogonal")


def check_adapter(options: Any) -> None:
    """Raise for values of `AdapterOptions` that contradict, or of which one would do nothing."""
    _check_expressions(options)
    _check_names(options)
    _check_start(options)
    _check_parameters(options)
    _check_tokens(options)


def _check_expressions(options: Any) -> None:
    texts = {
        "rank_pattern": list(options.rank_pattern),
        "alpha_pattern": list(options.alpha_pattern),
        "layers_pattern": _listed(options.layers_pattern),
        "exclude_modules": [options.exclude_modules]
        if isinstance(options.exclude_modules, str)
        else [],
        "target_modules": [options.target_modules]
        if isinstance(options.target_modules, str)
        else [],
    }
    for key, expressions in texts.items():
        for text in expressions:
            try:
                re.compile(text)
            except re.error as error:
                raise problem_at(key, f"has {text!r}, no regular expression: {error}") from None


def _check_names(options: Any) -> None:
    if options.target_modules == [] and not options.target_parameters:
        raise problem_at(
            "target_modules",
            "is the list [], which names nothing; name layers or target_parameters",
        )
    if options.layers_pattern is not None and options.layers_to_transform is None:
        raise problem_at(
            "layers_pattern", "says where layers are numbered, but layers_to_transform is not set"
        )
    expression = isinstance(options.target_modules, str) and options.target_modules not in (
        "auto",
        "all-linear",
    )
    if expression and options.layers_to_transform is not None:
        raise problem_at(
            "layers_to_transform",
            "is set while target_modules is a regular expression; write the layers into the "
            "expression, or name target_modules by a list",
        )


def _check_start(options: Any) -> None:
    init, dora = options.init_lora_weights, getattr(options, "use_dora", False)
    if options.lora_bias and init not in (True, False):
        raise problem_at("lora_bias", f"needs init_lora_weights true or false, not {init}")
    if options.lora_bias and dora:
        raise problem_at("lora_bias", "cannot be combined with use_dora; set one to false")
    if init == "mica" and dora:
        raise problem_at("init_lora_weights", "is mica, which has no form with use_dora")
    if init == "mica" and options.loraplus_lr_ratio is not None:
        raise problem_at(
            "loraplus_lr_ratio",
            "is for B, which init_lora_weights: mica keeps frozen; leave it out",
        )
    odd = [r for r in (options.r, *options.rank_pattern.values()) if r % 2]
    if init == "orthogonal" and odd:
        raise problem_at(
            "init_lora_weights", f"is orthogonal, which halves the rank: {odd[0]} is odd"
        )
    kept = init is True or init == "mica" or takes_from_base(init)
    if options.init_from is not None and not kept:
        raise problem_at(
            "init_lora_weights",
            f"is {str(init).lower()}, but init_from gives the start; leave one out",
        )


def _check_parameters(options: Any) -> None:
    if not options.target_parameters:
        return
    if options.dropout:
        raise problem_at(
            "target_parameters",
            f"cannot be combined with dropout, which is {options.dropout:g}; set method.dropout: 0",
        )
    if getattr(options, "use_dora", False) or options.lora_bias:
        key = "lora_bias" if options.lora_bias else "use_dora"
        raise problem_at("target_parameters", f"cannot be combined with {key}; set it to false")
    if options.init_lora_weights not in DRAWN:
        raise problem_at(
            "target_parameters",
            "needs init_lora_weights true, false or gaussian, not "
            f"{options.init_lora_weights}, which is a start of layers",
        )


def _check_tokens(options: Any) -> None:
    given = options.trainable_token_indices
    if given == {}:
        raise problem_at(
            "trainable_token_indices",
            "is the mapping {}, which names no table; write TABLE: [ID, ...], or leave it out",
        )
    for ids in (given or {}).values() if isinstance(given, dict) else [given or []]:
        twice = [str(i) for i, count in Counter(ids).items() if count > 1]
        if twice:
            raise problem_at("trainable_token_indices", f"names {', '.join(twice)} twice")


def _listed(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())
