"""Methods `lora` and `qlora`: PEFT's LoRA, over a base as it is or held in 8 or 4 bits."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftlab.config.methods.lora import AdapterOptions
from peftlab.config.methods.lora_rules import takes_from_base
from peftlab.errors import CheckFailed
from peftlab.methods.adapter import AdapterMethod, wrap
from peftlab.methods.adapter_files import (
    ADAPTER_NAME,
    WEIGHTS,
    adapter_folder,
    doubled_bias,
    load_adapter,
)
from peftlab.methods.coverage import cover
from peftlab.methods.freeze import freeze
from peftlab.methods.low_rank import decomposed, eva
from peftlab.methods.low_rank.biases import check_biases, is_bias, widen_norms
from peftlab.methods.low_rank.decomposed import lora_layers
from peftlab.methods.low_rank.names import (
    check_ranks,
    layers_to_adapt,
    parameters_to_adapt,
    rows_to_train,
)
from peftlab.methods.low_rank.source import go_on_from, start_of
from peftlab.methods.low_rank.ties import check_ties
from peftlab.methods.method import Applied, Beginning
from peftlab.methods.patterns import adapted_names
from peftlab.methods.selection import Selection, task_head
from peftlab.methods.targets import resolve_saved
from peftlab.methods.task_kind import peft_type
from peftlab.methods.trained_part import ADAPTER


class Lora(AdapterMethod[AdapterOptions]):
    """LoRA (Hu et al., 2021): A is drawn from torch's generator and B is zero, by default."""

    def select(
        self, model: nn.Module, task: str, tokens: Sequence[int]
    ) -> tuple[nn.Module, Selection]:
        """See `Method.select`."""
        kind = start_of(self.options)
        adapted, selected = super().select(model, task, tokens)
        assert isinstance(adapted, PeftModel)
        notes = [*selected.notes]
        if self.options.init_from is not None:
            notes += go_on_from(adapter_folder(self.options.init_from), adapted, self.options)
        notes += _notes(adapted, self.options, kind)
        return adapted, replace(selected, notes=tuple(notes))

    def adapt(self, model: nn.Module, task: str, tokens: Sequence[int]) -> PeftModel:
        """See `AdapterMethod.adapt`. Raises `CheckFailed` for names that mean nothing."""
        options = self.options
        saved = resolve_saved(
            model, options.modules_to_save, task, keep_tied=options.ensure_weight_tying
        )
        targets = layers_to_adapt(model, options, saved)
        parameters = parameters_to_adapt(model, options.target_parameters, targets)
        check_ranks(model, options, (*targets, *parameters))
        rows = rows_to_train(model, options.trainable_token_indices, tokens, saved, targets)
        if options.ensure_weight_tying:
            check_ties(model, saved, rows)
        init = options.init_lora_weights
        # Ours begin from factors that PEFT would draw and throw away too: the same random numbers.
        ours = takes_from_base(init) or init == "mica"
        drawn: Any = False if ours else init
        with warnings.catch_warnings():
            # Of patterns, which PEFT compares with modules alone, and of biases: checked here.
            warnings.simplefilter("ignore", RuntimeWarning)
            warnings.simplefilter("ignore", UserWarning)
            config = LoraConfig(
                task_type=peft_type(task, model),
                r=options.r,
                lora_alpha=_whole(options.alpha),
                lora_dropout=options.dropout,
                target_modules=list(targets),
                target_parameters=list(parameters) or None,
                modules_to_save=list(saved) or None,
                trainable_token_indices=rows,
                ensure_weight_tying=options.ensure_weight_tying,
                init_lora_weights=drawn,
                rank_pattern=dict(options.rank_pattern),
                alpha_pattern={name: _whole(a) for name, a in options.alpha_pattern.items()},
                use_rslora=options.use_rslora,
                use_dora=getattr(options, "use_dora", False),
                fan_in_fan_out=any(isinstance(model.get_submodule(n), Conv1D) for n in targets),
                bias=options.bias,
                lora_bias=options.lora_bias,
            )
            adapted = wrap(model, config)
        # PEFT makes sets of names, whose order on disk would differ from run to run.
        settings: Any = adapted.peft_config[ADAPTER_NAME]
        settings.target_modules = sorted(settings.target_modules or ())
        if settings.target_parameters:
            settings.target_parameters = sorted(settings.target_parameters)
        if ours:
            settings.init_lora_weights = "mica" if init == "mica" else True
        if init == "mica":
            decomposed.freeze_b(adapted)
        _check_adapted(adapted, targets, parameters)
        if options.bias != "none":
            check_biases(adapted, options.bias)
        return adapted

    def trains(self, name: str) -> bool:
        """See `AdapterMethod.trains`; modules that train whole are the adapter's too."""
        if self.options.init_lora_weights == "mica" and ".lora_B." in name:
            return False
        own = ("lora_", "trainable_tokens_delta")
        factor = any(part.startswith(own) for part in name.split("."))
        whole = f"modules_to_save.{ADAPTER_NAME}" in name
        return factor or whole or is_bias(name, self.options.bias)

    def begin(self, applied: Applied, beginning: Beginning) -> Applied:
        """See `Method.begin`: PiSSA, OLoRA and MiCA decompose weights, EVA reads rows."""
        kind = start_of(self.options)
        if kind is None:
            return applied
        model, stored = applied.model, beginning.stored(kind)
        assert isinstance(model, PeftModel)
        fresh = self.options.init_from is None
        if kind == "eva":
            start = stored or eva.directions(model, beginning)
            eva.place(model, start)
            return replace(self._again(model, applied.task), start=start, notes=applied.notes)
        if kind == "mica":
            start = stored or decomposed.minor_directions(model, place=fresh)
            decomposed.place_again(model, start)
        elif stored is None:
            start = decomposed.take_out(model, kind, seed=beginning.seed, place=fresh)
        else:
            start = stored
            decomposed.take_out_again(model, start)
        return replace(applied, start=start)

    def _again(self, model: PeftModel, task: str) -> Applied:
        """What trains of an adapted model, once its layers are what they will be."""
        names = frozenset(n for n, _ in model.named_parameters() if self.trains(n))
        freeze(model, names)
        widen_norms(model, names)
        saved = model.active_peft_config.modules_to_save or ()
        heads = tuple(h for h in task_head(model.get_base_model()) if h in saved)
        return Applied(model, self.options, task, names, cover(model), heads)

    def save(self, applied: Applied, run: Path) -> Path:
        """See `Method.save`: an ordinary LoRA over the untouched base, whatever it began from."""
        target = super().save(applied, run)
        assert isinstance(applied.model, PeftModel)
        if applied.start is not None and applied.start.taken_out:
            decomposed.save_over_base(applied.model, applied.start, target)
        if self.options.bias == "all":
            tensors = load_file(target / WEIGHTS)
            kept = {name: t for name, t in tensors.items() if not doubled_bias(name)}
            save_file(kept, target / WEIGHTS, metadata={"format": "pt"})
        return target

    def load(
        self, model: nn.Module, run: Path, *, task: str, tokens: Sequence[int] = ()
    ) -> Applied:
        """See `Method.load`. Ranks and layers are those that the adapter's own file names."""
        target = self.folder(run)
        if not target.is_dir():
            raise CheckFailed(f"{run} has no {ADAPTER} folder; the run is not whole.")
        adapter_folder(target)
        try:
            config: Any = LoraConfig.from_pretrained(str(target))
            # Nothing is drawn or decomposed: all is overwritten.
            began, config.init_lora_weights = config.init_lora_weights, False
            config.inference_mode = False
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                adapted = wrap(model, config)
            config.init_lora_weights = began
        except (ValueError, TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
            raise CheckFailed(f"{target} does not fit the model: {error}") from None
        applied = self._again(adapted, task)
        load_adapter(target, adapted, fresh_head=False)
        return applied

    def learning_rates(self, applied: Applied, rate: float) -> Mapping[str, float]:
        """See `Method.learning_rates`: LoRA+ (Hayou et al., 2024), of B and of vectors."""
        ratio = self.options.loraplus_lr_ratio
        if ratio is None:
            return {}
        return {
            name: rate * ratio
            for name, p in applied.model.named_parameters()
            if name in applied.trainable and (".lora_B." in name or p.ndim == 1)
        }

    def default_learning_rate(self, hidden_size: int) -> float:
        """See `Method.default_learning_rate`.

        5e-4 at a width of 384, scaled by the inverse root of the width, which meets the 1e-4 to
        2e-4 usual at 4,096. Twice as much trains faster, until with some seeds the model collapses
        to one class: at a width of 384 one of two did on SST-2 with r=16.
        """
        return min(1e-3, 5e-4 * math.sqrt(384 / hidden_size))


def _check_adapted(adapted: PeftModel, targets: Sequence[str], parameters: Sequence[str]) -> None:
    """PEFT must have adapted what was named, and nothing else. Raises `CheckFailed`."""
    if wrong := sorted({*adapted_names(adapted)} ^ {*targets, *parameters}):
        raise CheckFailed(
            f"PEFT adapted other layers than were named, {wrong[0]} among them; name "
            "method.target_modules by patterns."
        )


def _notes(adapted: PeftModel, options: AdapterOptions, kind: str | None) -> list[str]:
    notes = []
    layers = lora_layers(adapted)
    if options.lora_bias:
        bare = [n for n, m in layers.items() if getattr(m.get_base_layer(), "bias", None) is None]
        if bare:
            name = bare[0].removeprefix("base_model.model.")
            notes.append(
                f"{name} has no bias, so its lora_bias can be used but never merged into the base"
            )
    narrow = {m.get_base_layer().weight.dtype for m in layers.values()} - {torch.float32}
    if takes_from_base(kind) and narrow:
        dtype = str(min(narrow, key=str)).removeprefix("torch.")
        notes.append(
            f"the base's weights are {dtype}, to which {kind} rounds what is left of them: what is "
            "saved differs by as much from what trained; model.dtype: float32 is exact"
        )
    return notes


def _whole(alpha: float) -> Any:
    """PEFT writes alpha as it gets it; readers of adapter_config.json expect an integer."""
    return int(alpha) if float(alpha).is_integer() else alpha
