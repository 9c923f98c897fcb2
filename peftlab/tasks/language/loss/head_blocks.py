"""The language-model head applied to blocks of tokens, so that all logits never exist at once.

Legend: N selected tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

BLOCK_TOKENS = 256
_BLOCK_LOGITS = 1 << 23
"""Logits of a block (32 MiB in fp32), which is longer for a small vocabulary: each block reads, and
under fp32 activations widens, the whole head."""


@dataclass(frozen=True, slots=True)
class Head:
    """The head module with the model's softcap of its output, and its arithmetic.

    `autocast` is the dtype of the autocast region that the model ran in, or None.
    """

    module: nn.Module
    softcap: float | None
    autocast: torch.dtype | None
    device_type: str

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[N, H] -> [N, V] in fp32."""
        logits: torch.Tensor = self.module(hidden)
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits.float()

    def arithmetic(self) -> AbstractContextManager[Any]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device_type, self.autocast)

    def vocabulary(self) -> int:
        size = getattr(self.module, "out_features", None)
        return size if isinstance(size, int) else 1 << 15


def blocks(count: int, vocabulary: int) -> Iterator[slice]:
    """Slices of `count` tokens whose logits over the vocabulary are computed at once."""
    size = max(BLOCK_TOKENS, _BLOCK_LOGITS // vocabulary)
    return (slice(start, start + size) for start in range(0, count, size))


def loss_sum(head: Head, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy of hidden [N, H] against labels [N], differentiable.

    Gradients are computed block by block within the forward pass: backward needs their sums only,
    and the head runs once, with its own dropout. (Checkpointed blocks would run it twice.) Double
    backward is not supported.
    """
    parameters = [p for p in head.module.parameters() if p.requires_grad]
    if not torch.is_grad_enabled() or not (hidden.requires_grad or parameters):
        losses, _ = token_losses(head, hidden, labels)
        return losses.sum()
    result: torch.Tensor = _BlockedLoss.apply(  # type: ignore[no-untyped-call]
        head, hidden, labels, *parameters
    )
    return result


class _BlockedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, head: Head, hidden: torch.Tensor, labels: torch.Tensor, *parameters: nn.Parameter
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        wants_hidden = ctx.needs_input_grad[1]
        hidden_gradient = torch.empty_like(hidden) if wants_hidden else None
        sums: list[torch.Tensor | None] = [None] * len(parameters)
        for part in blocks(len(labels), head.vocabulary()):
            x = hidden[part].detach().requires_grad_(wants_hidden)
            with torch.enable_grad(), head.arithmetic():
                loss = F.cross_entropy(head.logits(x), labels[part], reduction="sum")
            inputs = [x, *parameters] if wants_hidden else list(parameters)
            gradients = list(torch.autograd.grad(loss, inputs, allow_unused=True))
            total += loss.detach()
            if hidden_gradient is not None:
                hidden_gradient[part] = gradients.pop(0)
            for index, gradient in enumerate(gradients):
                if gradient is not None:
                    known = sums[index]
                    sums[index] = gradient if known is None else known.add_(gradient)
        ctx.gradients = (hidden_gradient, *sums)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, *parameters = ctx.gradients
        ctx.gradients = ()  # backward runs once; the buffers are passed on, not kept
        scaled = (None if g is None else g.mul_(gradient.to(g.dtype)) for g in parameters)
        return None, None if hidden is None else hidden.mul_(gradient), None, *scaled


@torch.no_grad()
def token_losses(
    head: Head, hidden: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy [N] in fp32 and whether the top-1 token is the label [N]."""
    losses = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
    correct = torch.empty(len(labels), dtype=torch.bool, device=hidden.device)
    for part in blocks(len(labels), head.vocabulary()):
        with head.arithmetic():
            logits = head.logits(hidden[part])
        losses[part] = F.cross_entropy(logits, labels[part], reduction="none")
        correct[part] = logits.argmax(dim=-1) == labels[part]
    return losses, correct
