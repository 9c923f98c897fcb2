"""The adapter that `method.init_from` names: whether LoRA's keys mean the same there, its start."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel

from peftlab.config.methods.lora import AdapterOptions
from peftlab.config.methods.lora_rules import takes_from_base
from peftlab.errors import CheckFailed
from peftlab.methods.adapter_files import ADAPTER_NAME, CONFIG, adapter_folder
from peftlab.methods.low_rank.decomposed import lora_layers
from peftlab.methods.low_rank.names import pattern_for

_LOST = ("corda", "lora_ga", "loftq")


def start_of(options: AdapterOptions) -> str | None:
    """What the adapter's factors start from beyond what PEFT draws, or None.

    An adapter of PEFT's that began as PiSSA or OLoRA and was saved as it is belongs over a base
    with its start taken out, whatever `init_lora_weights` is. Raises `CheckFailed` where that start
    cannot be computed again, or is another than asked for.
    """
    asked = options.init_lora_weights
    own = str(asked) if takes_from_base(asked) or asked in ("mica", "eva") else None
    if options.init_from is None:
        return own
    folder = adapter_folder(options.init_from)
    began = _read(folder).get("init_lora_weights", True)
    if began in _LOST or str(began).startswith("pissa_niter"):
        raise CheckFailed(
            f"method.init_from is {folder}, which began as {began} and was saved without that "
            "start, which cannot be computed again: it fits no base that is left. Save it in its "
            "own process by PEFT's path_initial_model_for_weight_conversion, or train anew."
        )
    if takes_from_base(began):
        if options.loads_in != 16:
            raise CheckFailed(
                f"method.init_from is {folder}, which began as {began} on a base of floats; "
                f"{options.name} holds the base in {options.loads_in} bits: take method lora."
            )
        if takes_from_base(asked) and asked != began:
            raise CheckFailed(
                f"method.init_lora_weights is {asked}, but {folder} began as {began}; leave "
                "init_lora_weights out."
            )
        return str(began)
    if takes_from_base(asked):
        raise CheckFailed(
            f"method.init_lora_weights is {asked}, but training starts from {folder}, which is "
            "no raw PiSSA or OLoRA adapter; leave init_lora_weights out."
        )
    if asked == "mica" and began != "mica":
        raise CheckFailed(
            f"method.init_lora_weights is mica, which keeps B frozen, but {folder} began as "
            f"{str(began).lower()}, whose B trained and is no set of minor directions; leave "
            "init_lora_weights out."
        )
    return own


def check_same_layers(folder: Path, model: PeftModel) -> None:
    """Compare what a saved adapter says of ranks, biases, parameters and rows with `model`'s.

    Raises `CheckFailed` with the first difference.
    """
    there = _read(folder)
    here: Any = model.peft_config[ADAPTER_NAME]
    for said in _differences(there, here, model):
        raise CheckFailed(
            f"method.init_from is {folder}, an adapter of other settings: {said}; give method the "
            "same ones."
        )


def _differences(there: Mapping[str, Any], here: Any, model: PeftModel) -> Iterator[str]:
    if there.get("layer_replication"):
        yield "layer_replication is set, which peftlab does not train"
    for key, default in (("bias", "none"), ("lora_bias", False)):
        if (was := there.get(key, default)) != (now := getattr(here, key)):
            yield f"{key} is {was}, here {now}"
    rows = there.get("trainable_token_indices") or None
    if (rows or None) != (here.trainable_token_indices or None):
        yield f"trainable_token_indices is {rows}, here {here.trainable_token_indices}"
    parameters = sorted(there.get("target_parameters") or ())
    if parameters != sorted(here.target_parameters or ()):
        yield f"target_parameters is {parameters}, here {here.target_parameters}"
    ranks, alphas = there.get("rank_pattern") or {}, there.get("alpha_pattern") or {}
    for name, layer in lora_layers(model).items():
        place = name.removeprefix("base_model.model.")
        rank = ranks.get(pattern_for(ranks, place) or "", there.get("r"))
        alpha = alphas.get(pattern_for(alphas, place) or "", there.get("lora_alpha"))
        for what, was, now in (
            ("rank", rank, layer.r[ADAPTER_NAME]),
            ("alpha", alpha, layer.lora_alpha[ADAPTER_NAME]),
        ):
            if was != now:
                yield f"the {what} of {place} is {was}, here {now}"


def _read(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckFailed(f"{folder / CONFIG} is not readable as JSON: {error}.") from None
    return found
