"""Parameters that train at a learning rate of their own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn


def set_learning_rates(
    optimizer: torch.optim.Optimizer, model: nn.Module, rates: Mapping[str, float]
) -> None:
    """Split the optimizer's groups so that the named parameters have these rates.

    Call it before a schedule is made: schedules multiply the rate that a group has then. Groups
    keep their other settings, weight decay among them, and those of the plain rate stay first.
    What has its rate already stays, so a second call changes nothing.
    """
    parameters = dict(model.named_parameters())
    wanted = {id(parameters[name]): rate for name, rate in rates.items()}
    for group in list(optimizer.param_groups):
        settings = {k: v for k, v in group.items() if k not in ("params", "lr", "initial_lr")}
        plain = group.get("initial_lr", group["lr"])
        by_rate: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            if (rate := wanted.get(id(parameter), plain)) != plain:
                by_rate.setdefault(rate, []).append(parameter)
        gone = {id(p) for moved in by_rate.values() for p in moved}
        group["params"] = [p for p in group["params"] if id(p) not in gone]
        for rate, moved in by_rate.items():
            optimizer.add_param_group({**settings, "params": moved, "lr": rate})
