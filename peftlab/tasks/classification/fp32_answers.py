"""A head of one output computed in fp32 where the model computes in bf16."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

_IN_A_BLOCK = re.compile(r"\.\d+\.")


@contextmanager
def fp32_answers(model: nn.Module) -> Iterator[None]:
    """Inside, linear layers of one output that lie on top of the blocks compute in fp32.

    bf16 has three significant digits, so a number that leaves the head in it is rounded: 3.14159
    becomes 3.140625. Does nothing where autocast is off, or where gradients are recorded.
    """
    kind = next(model.parameters()).device.type
    if torch.is_grad_enabled() or not torch.is_autocast_enabled(kind):
        yield
        return

    def widened(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        assert isinstance(module, nn.Linear)
        with torch.autocast(kind, enabled=False):
            bias = None if module.bias is None else module.bias.float()
            return F.linear(inputs[0].float(), module.weight.float(), bias)

    handles = [
        module.register_forward_hook(widened)
        for name, module in model.named_modules()
        if type(module) is nn.Linear and module.out_features == 1 and not _IN_A_BLOCK.search(name)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
