"""The adapter that `method.init_from` names: whether LoRA's keys mean the same there, its start."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from peft import PeftModel

from peftlab.config.methods.lora import AdapterOptions
from peftlab.config.methods.lora_rules import takes_from_base
from peftlab.errors import CheckFailed
from peftlab.methods.adapter_files import (
    ADAPTER_NAME,
    CONFIG,
    adapter_folder,
    adapter_tensors,
    load_adapter,
    saved_tensors,
)
from peftlab.methods.low_rank.decomposed import lora_layers
from peftlab.methods.low_rank.rows import RowTables, Tables
from peftlab.methods.patterns import pattern_for

_LOST = ("corda", "lora_ga", "loftq")


def start_of(options: AdapterOptions) -> str | None:
    """What the adapter's factors start from beyond what PEFT draws, or None.

    An adapter of PEFT's that began as PiSSA or OLoRA and was saved as it is belongs over a base
    with its start taken out, whatever `init_lora_weights` is. Raises `CheckFailed` where that start
    cannot be computed again, or is another than the one that is set.
    """
    init = options.init_lora_weights
    own = str(init) if takes_from_base(init) or init in ("mica", "eva") else None
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
        if takes_from_base(init) and init != began:
            raise CheckFailed(
                f"method.init_lora_weights is {init}, but {folder} began as {began}; leave "
                "init_lora_weights out."
            )
        return str(began)
    if takes_from_base(init):
        raise CheckFailed(
            f"method.init_lora_weights is {init}, but training starts from {folder}, which is "
            "no raw PiSSA or OLoRA adapter; leave init_lora_weights out."
        )
    if init == "mica" and began != "mica":
        raise CheckFailed(
            f"method.init_lora_weights is mica, which keeps B frozen, but {folder} began as "
            f"{str(began).lower()}, whose B trained and is no set of minor directions; leave "
            "init_lora_weights out."
        )
    return own


def go_on_from(folder: Path, model: PeftModel, options: AdapterOptions) -> list[str]:
    """Copy a saved adapter into the fresh one on `model`; returned are sentences about it.

    A new head, and rows of tokens that the task adds, start anew where the adapter lacks them.
    Raises `CheckFailed` where its settings mean other weights, or its tensors do not fit.
    """
    there = _read(folder)
    here: Any = model.peft_config[ADAPTER_NAME]
    _refuse(folder, list(_other_adapter(there, here)))
    rows = RowTables(model)
    then, now = rows.of(there.get("trainable_token_indices")), rows.of(here.trainable_token_indices)
    named = rows.of(options.trainable_token_indices)
    _refuse(folder, [*islice(_other_rows(then, now, named), 1)])
    _refuse(folder, [*islice(_differences(there, here, model), 1)])
    saved = rows.placed(saved_tensors(folder), adapter_tensors(model), then, now)
    fresh = list(load_adapter(folder, model, fresh_head=True, saved=saved))
    for table, ids in now.items():
        if new := [str(i) for i in ids if i not in then.get(table, ())]:
            fresh.append(f"{'row' if len(new) == 1 else 'rows'} {' '.join(new)} of {table}")
    notes = [f"training starts from the adapter {folder}"]
    if fresh:
        notes.append(f"of which {', '.join(fresh)} did not fit and starts anew")
    return notes


def _refuse(folder: Path, differences: list[str]) -> None:
    if differences:
        raise CheckFailed(
            f"method.init_from is {folder}, an adapter of other settings: "
            f"{'; '.join(differences)}; give method the same ones."
        )


def _other_adapter(there: Mapping[str, Any], here: Any) -> Iterator[str]:
    """Every difference in what all of the adapter's weights mean."""
    if str(there.get("peft_type")) != "LORA":
        yield f"peft_type is {there.get('peft_type')}, here LORA"
    for key, default in (
        ("r", None), ("lora_alpha", None), ("use_rslora", False), ("use_dora", False),
    ):  # fmt: skip
        if (was := there.get(key, default)) != (now := getattr(here, key)):
            yield f"{key} is {was}, here {now}"
    base, mine = there.get("base_model_name_or_path"), here.base_model_name_or_path
    if base and mine and not _same_base(str(base), str(mine)):
        yield f"its base is {base}, here {mine}"


def _same_base(a: str, b: str) -> bool:
    return a == b or (Path(a).is_dir() and Path(b).is_dir() and Path(a).samefile(b))


def _other_rows(then: Tables, now: Tables, named: Tables) -> Iterator[str]:
    """Rows that the adapter trained and the method would not, and the other way round.

    Tokens that the task adds are no setting of the method's.
    """
    key = "trainable_token_indices"
    for table in then.keys() | named.keys():
        had, has = set(then.get(table, ())), set(now.get(table, ()))
        if lost := sorted(had - has):
            yield f"{key} names row {lost[0]} of {table}, which would not train here"
        if lacking := sorted(set(named.get(table, ())) - had):
            yield f"{key} names no row {lacking[0]} of {table}, which would train here"


def _differences(there: Mapping[str, Any], here: Any, model: PeftModel) -> Iterator[str]:
    if there.get("layer_replication"):
        yield "layer_replication is set, which peftlab does not train"
    for key, default in (("bias", "none"), ("lora_bias", False)):
        if (was := there.get(key, default)) != (now := getattr(here, key)):
            yield f"{key} is {was}, here {now}"
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
        settings: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckFailed(f"{folder / CONFIG} is not readable as JSON: {error}.") from None
    return settings
