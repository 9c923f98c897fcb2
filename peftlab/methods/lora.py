"""Methods `lora` and `qlora`: PEFT's LoRA, over a base as it is or held in 8 or 4 bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftlab.config.methods.lora import AdapterOptions
from peftlab.errors import CheckFailed
from peftlab.methods.adapter import AdapterMethod, wrap
from peftlab.methods.adapter_files import ADAPTER_NAME
from peftlab.methods.targets import resolve_saved, resolve_targets
from peftlab.methods.task_kind import peft_type


class Lora(AdapterMethod[AdapterOptions]):
    """LoRA (Hu et al., 2021): A is drawn from torch's generator, B is zero."""

    def adapt(self, model: nn.Module, task: str, tokens: Sequence[int]) -> PeftModel:
        """See `AdapterMethod.adapt`. Raises `CheckFailed` for targets that mean nothing."""
        options = self.options
        saved = resolve_saved(model, options.modules_to_save, task)
        targets = resolve_targets(model, options.target_modules, saved)
        config = LoraConfig(
            task_type=peft_type(task, model),
            r=options.r,
            lora_alpha=_whole(options.alpha),
            lora_dropout=options.dropout,
            target_modules=list(targets),
            modules_to_save=list(saved) or None,
            trainable_token_indices=list(tokens) or None,
            use_rslora=options.use_rslora,
            use_dora=getattr(options, "use_dora", False),
            fan_in_fan_out=any(isinstance(model.get_submodule(n), Conv1D) for n in targets),
            bias="none",
        )
        adapted = wrap(model, config)
        # PEFT shortens the names into a set, whose order on disk would differ from run to run.
        settings: Any = adapted.peft_config[ADAPTER_NAME]
        settings.target_modules = sorted(settings.target_modules)
        layers = {
            name.removeprefix("base_model.model.")
            for name, module in adapted.named_modules()
            if isinstance(module, LoraLayer)
        }
        if layers != set(targets):
            wrong = sorted(layers ^ set(targets))
            raise CheckFailed(
                f"PEFT adapted other layers than asked for, {wrong[0]} among them; name "
                "method.target_modules by patterns."
            )
        return adapted

    def trains(self, name: str) -> bool:
        """See `AdapterMethod.trains`; modules that train whole are the adapter's too."""
        own = ("lora_", "trainable_tokens_delta")
        factor = any(part.startswith(own) for part in name.split("."))
        return factor or f"modules_to_save.{ADAPTER_NAME}" in name

    def default_learning_rate(self, hidden_size: int) -> float:
        """See `Method.default_learning_rate`.

        5e-4 at a width of 384, scaled by the inverse root of the width, which meets the 1e-4 to
        2e-4 usual at 4,096. Twice as much trains faster, until with some seeds the model collapses
        to one class: at a width of 384 one of two did on SST-2 with r=16.
        """
        return min(1e-3, 5e-4 * math.sqrt(384 / hidden_size))

    def without_start(self) -> Lora:
        """See `AdapterMethod.without_start`."""
        return Lora(self.options.model_copy(update={"init_from": None}))


def _whole(alpha: float) -> Any:
    """PEFT writes alpha as it gets it; readers of adapter_config.json expect an integer."""
    return int(alpha) if float(alpha).is_integer() else alpha
