"""What AdaLoRA and Shadow add to the optimizer's steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from peftlab.errors import CheckFailed, ConfigError
from peftlab.methods.adapter_files import ADAPTER_NAME
from peftlab.methods.method import StepHooks

_IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""The rank allocator's running importance of each entry, by PEFT's names."""
_RANKS = "rank_pattern"
"""Which ranks are left by the last allocation, which PEFT's configuration keeps."""


class AdaLoraSteps(StepHooks):
    """AdaLoRA (Zhang et al., 2023): orthogonal factors, and rank where it matters most."""

    def __init__(self, model: nn.Module) -> None:
        self._tuner: Any = model.base_model
        self._config: Any = model.peft_config[ADAPTER_NAME]  # type: ignore[index]

    def begin(self, steps: int) -> None:
        """See `StepHooks.begin`."""
        first, last = self._config.tinit, self._config.tfinal
        if first >= steps - last:
            raise ConfigError(
                f"method.tinit is {first} and method.tfinal {last}, which leaves none of the run's "
                f"{steps} steps for AdaLoRA to take rank away; lower them, or train longer."
            )
        self._config.total_step = steps

    def loss_term(self, batch: Mapping[str, Any]) -> torch.Tensor | None:
        """The mean distance of the factors from orthogonal ones, times `orth_reg_weight`."""
        distances = []
        for name, factor in self._tuner.model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                product = factor @ factor.T if "lora_A" in name else factor.T @ factor
                identity = torch.eye(len(product), device=product.device, dtype=product.dtype)
                distances.append(torch.linalg.matrix_norm(product - identity))
        weight = float(self._config.orth_reg_weight)
        return weight * torch.stack(distances).mean()

    def after_step(self, step: int) -> None:
        """See `StepHooks.after_step`."""
        self._tuner.update_and_allocate(step)

    def state(self) -> dict[str, torch.Tensor]:
        """See `StepHooks.state`."""
        allocator = self._tuner.rankallocator
        state = {
            f"{kind}/{name}": tensor
            for kind in _IMPORTANCE
            for name, tensor in getattr(allocator, kind).items()
        }
        kept = self._config.rank_pattern or {}
        return state | {f"{_RANKS}/{name}": torch.tensor(ranks) for name, ranks in kept.items()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """See `StepHooks.restore`."""
        allocator = self._tuner.rankallocator
        devices = {name: p.device for name, p in self._tuner.model.named_parameters()}
        for kind in _IMPORTANCE:
            getattr(allocator, kind).clear()
        ranks: dict[str, list[bool]] = {}
        for key, tensor in state.items():
            kind, _, name = key.partition("/")
            if kind == _RANKS:
                ranks[name] = tensor.tolist()
                continue
            if kind not in _IMPORTANCE or name not in devices:
                raise CheckFailed(f"the checkpoint's AdaLoRA state names {key}, unknown here.")
            getattr(allocator, kind)[name] = tensor.to(devices[name])
        self._config.rank_pattern = ranks or None


class ShadowSteps(StepHooks):
    """Shadow's own loss of what its small model predicts."""

    def __init__(self, model: nn.Module) -> None:
        self._tuner: Any = model.base_model
        self._weight = float(
            model.peft_config[ADAPTER_NAME].auxiliary_loss_weight  # type: ignore[index,union-attr]
        )

    def loss_term(self, batch: Mapping[str, Any]) -> torch.Tensor | None:
        """See `StepHooks.loss_term`."""
        loss = self._tuner.shadow_auxiliary_loss(
            batch["labels"], attention_mask=batch.get("attention_mask")
        )
        return None if loss is None or not self._weight else self._weight * loss


def keep_ranks(model: nn.Module) -> None:
    """Have PEFT save the ranks that the weights have now.

    It keeps those of its last step, and the weights may be of an earlier one, the best.
    """
    tuner: Any = model.base_model
    model.peft_config[ADAPTER_NAME].rank_pattern = {  # type: ignore[index,union-attr]
        name: (values != 0).flatten().tolist()
        for name, values in tuner.model.named_parameters()
        if f"lora_E.{ADAPTER_NAME}" in name
    }
