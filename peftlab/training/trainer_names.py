"""Names that Trainer knows: optimizers, schedules, loggers. Wrong ones are refused by name."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from peftlab.errors import ConfigError, did_you_mean

logger = logging.getLogger("peftlab")

# Optimizers of bitsandbytes; since 0.50 they run on a CPU too, where nothing can be paged.
_BITSANDBYTES = frozenset(
    {
        "adamw_bnb_8bit", "adamw_8bit", "ademamix", "ademamix_8bit", "lion_8bit", "lion_32bit",
        "paged_adamw_32bit", "paged_adamw_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit",
        "paged_lion_32bit", "paged_lion_8bit", "rmsprop_bnb", "rmsprop_bnb_8bit",
        "rmsprop_bnb_32bit",
    }
)  # fmt: skip
_BY_METRIC = frozenset({"reduce_lr_on_plateau", "greedy"})


def check_choices(
    *, optim: str, lr_scheduler_type: str, report_to: Iterable[str] = (), evaluates: bool = True
) -> None:
    """Raise `ConfigError` for a name that Trainer does not know or cannot use here.

    `evaluates`: whether there will be validation metrics during training; schedules that follow a
    metric need them.
    """
    _known("train.optim", optim, (name.value for name in OptimizerNames))
    _known("train.lr_scheduler_type", lr_scheduler_type, (name.value for name in SchedulerType))
    for reporter in report_to:
        _known("output.report_to", reporter, INTEGRATION_TO_CALLBACK)
    if lr_scheduler_type in _BY_METRIC and not evaluates:
        raise ConfigError(
            f"train.lr_scheduler_type is {lr_scheduler_type}, which follows the validation metric, "
            "but nothing is evaluated during training; set eval.every, or choose linear or cosine."
        )
    if optim in _BITSANDBYTES:
        if find_spec("bitsandbytes") is None:
            raise ConfigError(
                f"train.optim is {optim}, which needs bitsandbytes: pip install 'peftlab[quant]'; "
                "adamw_torch needs nothing."
            )
        _warn_unpaged(optim)


def check_penalised(optim: str, *, l1: float) -> None:
    """Raise `ConfigError` for an optimizer that cannot be combined with penalties."""
    if "lomo" in optim or optim.endswith("_layerwise"):
        raise ConfigError(
            f"train.optim is {optim}, which steps inside the backward pass, before a penalty of "
            "regularization could join the gradient; choose another, such as adamw_torch."
        )
    if l1 and optim.startswith("schedule_free"):
        raise ConfigError(
            f"train.optim is {optim}, whose weights are averages of others, which "
            "regularization.l1 cannot set to zero; choose another, such as adamw_torch."
        )


def _warn_unpaged(optim: str) -> None:
    import torch

    if optim.startswith("paged_") and not torch.cuda.is_available():
        logger.warning(
            "train.optim is %s: there is no CUDA device, so its state stays in memory, unpaged.",
            optim,
        )


def schedule_arguments(
    lr_scheduler_type: str, *, steps: int, greater_is_better: bool
) -> Mapping[str, Any]:
    """The arguments that a schedule requires beside the step counts.

    The cosines with a floor end at a tenth of the learning rate, warmup_stable_decay decays over
    the last tenth of the steps, and the schedules that follow a metric get its direction.
    """
    if lr_scheduler_type in ("cosine_with_min_lr", "cosine_warmup_with_min_lr"):
        return {"min_lr_rate": 0.1}
    if lr_scheduler_type == "warmup_stable_decay":
        return {"num_decay_steps": max(1, steps // 10)}
    if lr_scheduler_type in _BY_METRIC:
        return {"mode": "max" if greater_is_better else "min"}
    return {}


def _known(key: str, value: str, names: Iterable[str]) -> None:
    known = sorted(names)
    if value in known:
        return
    hint = did_you_mean(value, known, cutoff=0.4)
    raise ConfigError(f"{key} is {value!r}{hint or '.'} Known are {', '.join(known)}.")
