"""Methods that train an adapter by PEFT beside frozen weights, saved in PEFT's own format."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn

from peftlab.errors import CheckFailed
from peftlab.methods.adapter_files import ADAPTER_NAME, vectors_allowed
from peftlab.methods.method import Applied, Method, Options
from peftlab.methods.patterns import adapted_names, keep_meaning
from peftlab.methods.selection import Selection, task_head
from peftlab.methods.trained_part import ADAPTER
from peftlab.model.quantized import holds_8bit


class AdapterMethod(Method[Options]):
    """Wraps the model by PEFT, checks that what trains is what was chosen, saves the adapter."""

    @abstractmethod
    def adapt(self, model: nn.Module, task: str, tokens: Sequence[int]) -> PeftModel:
        """A fresh adapter on the model. Raises `CheckFailed`, `ConfigError`."""

    @abstractmethod
    def trains(self, name: str) -> bool:
        """Whether a parameter of the wrapped model is one of the adapter's that train."""

    def select(
        self, model: nn.Module, task: str, tokens: Sequence[int]
    ) -> tuple[nn.Module, Selection]:
        """See `Method.select`."""
        heads = task_head(model)
        adapted = self.adapt(model, task, tokens)
        names = self.trained_names(adapted)
        # Some of PEFT's configurations have no such field.
        saved = getattr(adapted.active_peft_config, "modules_to_save", None) or ()
        return adapted, Selection(names, tuple(h for h in heads if h in saved))

    def trained_names(self, adapted: PeftModel) -> frozenset[str]:
        """The parameters that train: what `trains` says, and so says PEFT."""
        names = frozenset(n for n, _ in adapted.named_parameters() if self.trains(n))
        by_peft = {name for name, p in adapted.named_parameters() if p.requires_grad}
        if by_peft != names:
            wrong = sorted(by_peft ^ names)
            raise CheckFailed(f"PEFT trains other parameters than expected, {wrong[0]} among them.")
        return names

    def folder(self, run: Path) -> Path:
        """See `Method.folder`."""
        return run / ADAPTER

    def save(self, applied: Applied, run: Path) -> Path:
        """See `Method.save`."""
        target = self.folder(run)
        assert isinstance(applied.model, PeftModel)
        # Embeddings never train here; left to itself PEFT would ask the hub about them.
        with vectors_allowed():
            applied.model.save_pretrained(
                str(target), safe_serialization=True, save_embedding_layers=False
            )
        return target


def wrap(model: nn.Module, config: PeftConfig) -> PeftModel:
    """PEFT's model with a fresh adapter named `default`. Raises `CheckFailed` (`keep_meaning`)."""
    with warnings.catch_warnings():
        # A model that mixes Conv1D and Linear gets the flag layer by layer, each with a warning.
        warnings.filterwarnings("ignore", message=r"fan_in_fan_out is set to")
        warnings.filterwarnings("ignore", category=FutureWarning)  # PEFT calling Transformers
        wrapped: Any = get_peft_model(model, config, adapter_name=ADAPTER_NAME)
    if holds_8bit(model):
        wrapped.base_model._check_merge_allowed = _refuse_merging
    adapted: PeftModel = wrapped
    keep_meaning(adapted.peft_config[ADAPTER_NAME], adapted_names(adapted))
    return adapted


def _refuse_merging() -> None:
    """What PEFT asks before it merges: it would add to int8 codes as if they were weights."""
    raise ValueError(
        "the base's weights are 8-bit codes, into which no adapter can be merged; merge it into "
        "the 16-bit checkpoint that the base was made from"
    )
