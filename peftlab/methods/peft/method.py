"""Method `peft`: any adapter of the installed PEFT but LoRA, by PEFT's own name and keys."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftlab.config.methods.peft import PeftOptions
from peftlab.config.methods.peft_keys import config_class, converted, has_key
from peftlab.errors import CheckFailed, ConfigError
from peftlab.methods.adapter import AdapterMethod, wrap
from peftlab.methods.adapter_files import (
    ADAPTER_NAME,
    CONFIG,
    adapter_tensors,
    check_same_tensors,
    is_adapters,
    saved_tensors,
)
from peftlab.methods.freeze import freeze
from peftlab.methods.method import Applied, StepHooks
from peftlab.methods.peft import targets as peft_targets
from peftlab.methods.peft.steps import AdaLoraSteps, ShadowSteps, keep_ranks
from peftlab.methods.peft.types import ADAPTER_TYPES, OTHER, AdapterType, Sizes, learning_rate
from peftlab.methods.peft.wrapped import (
    materialised,
    prepare_wrapped,
    reads_no_token_types,
    refuse_task,
)
from peftlab.methods.selection import Selection
from peftlab.methods.targets import resolve_saved
from peftlab.methods.task_kind import has_new_head, peft_type
from peftlab.methods.trained_part import ADAPTER
from peftlab.model.structure import block_lists

_FAULTS = (
    ValueError, TypeError, AttributeError, KeyError, RuntimeError, NotImplementedError, ImportError,
    AssertionError, ZeroDivisionError, IndexError,
)  # fmt: skip
_WHOLE = f"modules_to_save.{ADAPTER_NAME}"


class PeftMethod(AdapterMethod[PeftOptions]):
    """An adapter as PEFT makes it, with what PEFT leaves open filled in."""

    def __init__(self, options: PeftOptions, *, for_inference: bool = False) -> None:
        super().__init__(options)
        self._for_inference = for_inference and self._type.places == "none"

    @property
    def _type(self) -> AdapterType:
        return ADAPTER_TYPES.get(self.options.peft_type, OTHER)

    def adapt(self, model: nn.Module, task: str, tokens: Sequence[int]) -> PeftModel:
        """See `AdapterMethod.adapt`. Raises `CheckFailed`, also for what PEFT refuses."""
        name = self.options.peft_type
        kind = peft_type(task, model)
        refuse_task(name, str(kind.value), model)
        saved: tuple[str, ...] = ()
        if has_key(name, "modules_to_save"):
            saved = resolve_saved(model, self.options.modules_to_save, task)
        elif has_new_head(task):
            raise CheckFailed(
                f"method.peft_type is {name}, beside which PEFT trains no whole module: the new "
                f"head of {task} would stay as it was drawn; take another type."
            )
        targets = peft_targets.resolve(model, self.options.target_modules, saved, self._type)
        settings: dict[str, Any] = {
            "task_type": kind,
            **converted(name, self.options.settings),
            **self._filled_in(model, targets),
        }
        if saved:
            settings["modules_to_save"] = list(saved)
        if self._for_inference:
            settings["inference_mode"] = True
        try:
            config: PeftConfig = config_class(name)(**settings)
            # What reads the weights cannot be built over none, so a plan draws some.
            with materialised(model, self._type.reads_weights) as real:
                adapted = wrap(real, config)
            if any(p.is_meta for p in adapted.parameters()):
                adapted.to("meta")
        except _FAULTS as error:
            raise CheckFailed(
                f"PEFT cannot put {name} on {type(model).__name__}: {str(error).rstrip('.')}."
            ) from error
        prepare_wrapped(adapted, name, str(kind.value))
        self._check_layers(adapted, targets)
        return adapted

    def _filled_in(self, model: nn.Module, targets: Sequence[str] | None) -> dict[str, Any]:
        """Values of keys that the user has not set and PEFT leaves open, or too large."""
        options, row = self.options, self._type
        layers = [model.get_submodule(n) for n in targets or () if row.places != "own"]
        sizes = Sizes.of(layers, sum(stack.count for stack in block_lists(model)))
        values: dict[str, Any] = {}
        if not row.instead & options.settings.keys():
            values |= row.supply(sizes)
        if row.places == "none":
            values["num_virtual_tokens"] = options.virtual_tokens
        if options.peft_type == "ADALORA":
            values |= _adalora(options.settings)
        if options.peft_type == "TRAINABLE_TOKENS" and not options.settings.get("token_indices"):
            raise ConfigError(
                "method.token_indices is missing: TRAINABLE_TOKENS trains the embeddings of these "
                "token ids; write a list of them."
            )
        fed: list[str] | None = None
        if targets is not None:
            values["target_modules"] = (
                list(targets) if row.places == "own" else peft_targets.ends_of(model, targets)
            )
            if row.places == "rescaled":
                named = options.settings.get("feedforward_modules")
                fed = peft_targets.feedforward(model, targets, named)
                values |= {"target_modules": list(targets)}
            mixed = any(isinstance(layer, Conv1D) for layer in layers)
            if mixed and has_key(options.peft_type, "fan_in_fan_out"):
                values["fan_in_fan_out"] = True
        values = {key: value for key, value in values.items() if key not in options.settings}
        return values if fed is None else {**values, "feedforward_modules": fed}

    def _check_layers(self, adapted: PeftModel, targets: Sequence[str] | None) -> None:
        """Only what was named got an adapter."""
        settings: Any = adapted.peft_config[ADAPTER_NAME]
        if isinstance(named := getattr(settings, "target_modules", None), set):
            # A set's order on disk would differ from run to run.
            settings.target_modules = sorted(named)
        if isinstance(fed := getattr(settings, "feedforward_modules", None), set):
            settings.feedforward_modules = sorted(fed)
        if targets is None or self._type.places == "own":
            return
        layers = {
            name.removeprefix("base_model.model.")
            for name, module in adapted.named_modules()
            if isinstance(module, BaseTunerLayer)
        }
        # What a key such as layers_to_transform leaves out has none, as intended.
        if not layers or layers - set(targets):
            wrong = sorted(layers - set(targets)) or ["none"]
            raise CheckFailed(
                f"PEFT adapted other layers than those named, {wrong[0]} among them; name "
                "method.target_modules by patterns."
            )

    def trains(self, name: str) -> bool:
        """See `AdapterMethod.trains`."""
        return is_adapters(name) or _WHOLE in name

    def trained_names(self, adapted: PeftModel) -> frozenset[str]:
        """What PEFT trains: some of an adapter's tensors are fixed, which their type decides."""
        if self._for_inference:
            return frozenset(
                n for n, _ in adapted.named_parameters() if self.trains(n) and "frozen" not in n
            )
        # Without weights PEFT does not freeze AdaLoRA's counters of ranks.
        names = frozenset(
            n for n, p in adapted.named_parameters() if p.requires_grad and ".ranknum." not in n
        )
        if wrong := sorted(n for n in names if not self.trains(n)):
            raise CheckFailed(
                f"PEFT trains parameters of the base with {self.options.peft_type}, {wrong[0]} "
                "among them, which no adapter's file holds."
            )
        return names

    def select(
        self, model: nn.Module, task: str, tokens: Sequence[int]
    ) -> tuple[nn.Module, Selection]:
        """See `Method.select`."""
        adapted, selected = super().select(model, task, tokens)
        notes = list(selected.notes)
        if tokens:
            notes.append(
                f"{self.options.peft_type} trains no embeddings beside its own tensors: those of "
                f"{len(tokens)} tokens that the task marks places with stay as they are"
            )
        if self._type.places == "none" and reads_no_token_types(adapted):
            notes.append(
                f"PEFT passes no token types on with {self.options.peft_type}: a question and its "
                "context differ by the separator between them alone"
            )
        return adapted, Selection(selected.names, selected.head, tuple(notes))

    def default_learning_rate(self, hidden_size: int) -> float:
        """See `Method.default_learning_rate`."""
        return learning_rate(self.options.peft_type, hidden_size)

    def step_hooks(self, applied: Applied) -> StepHooks | None:
        """See `Method.step_hooks`."""
        match self.options.peft_type:
            case "ADALORA":
                return AdaLoraSteps(applied.model)
            case "SHADOW":
                return ShadowSteps(applied.model)
        return None

    def save(self, applied: Applied, run: Path) -> Path:
        """See `Method.save`."""
        if self.options.peft_type == "ADALORA":
            keep_ranks(applied.model)
        return super().save(applied, run)

    def load(
        self, model: nn.Module, run: Path, *, task: str, tokens: Sequence[int] = ()
    ) -> Applied:
        """See `Method.load`."""
        folder = self.folder(run)
        if not folder.is_dir():
            raise CheckFailed(f"{run} has no {ADAPTER} folder; the run is not whole.")
        saved = saved_tensors(folder)
        method = PeftMethod(self.options, for_inference=True)
        applied = method.apply(model, task=task, tokens=tokens)
        adapted = applied.model
        assert isinstance(adapted, PeftModel)
        _like_saved(adapted, folder)
        try:
            report: Any = set_peft_model_state_dict(adapted, dict(saved))
        except (RuntimeError, KeyError) as error:
            first = str(error).strip().splitlines()[-1].strip()
            raise CheckFailed(f"{folder} does not fit {type(model).__name__}: {first}") from None
        mine = {name: t.detach().cpu() for name, t in adapter_tensors(adapted).items()}
        check_same_tensors(saved, mine, str(folder))
        # PEFT loads virtual tokens itself, and then calls their name unexpected.
        unread = [k for k in report.unexpected_keys if k != "prompt_embeddings"]
        unread += [n for n, t in mine.items() if not t.is_meta and not torch.equal(t, saved[n])]
        if unread:
            raise CheckFailed(f"{folder} does not fit: PEFT does not read {unread[0]} from it.")
        # AdaLoRA's tensors are others now, with the ranks that it chose.
        freeze(adapted, applied.trainable)
        return applied


def _adalora(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Steps until `AdaLoraSteps.begin` knows them. Raises `ConfigError` for impossible ranks."""
    first, last = settings.get("init_r", 12), settings.get("target_r", 8)
    if first <= last:
        raise ConfigError(
            f"method.init_r is {first} and method.target_r {last}: AdaLoRA takes rank away, so "
            "init_r must be the larger one."
        )
    return {"total_step": settings.get("tinit", 0) + settings.get("tfinal", 0) + 1}


def _like_saved(adapted: PeftModel, folder: Path) -> None:
    """Take over what training chose, which the saved tensors depend on."""
    there = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    here: Any = adapted.peft_config[ADAPTER_NAME]
    if there.get("peft_type") != str(here.peft_type.value):
        raise CheckFailed(
            f"{folder} holds {there.get('peft_type')}, and method.peft_type is "
            f"{here.peft_type.value}."
        )
    if here.peft_type.value == "ADALORA":
        here.rank_pattern = there.get("rank_pattern")
