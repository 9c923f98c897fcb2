"""The summed loss of a language model, computed in chunks where that gives the same value.

For decoders and encoder-decoders (`hidden_states` selects the positions of each).

A model may transform its logits after the head (Granite and Cohere scale them, Gemma caps them).
The chunked path is therefore verified on each model: at the first batch, a slice is computed both
ways, and logits and loss must agree.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn import functional as F

from peftlab.errors import CheckFailed
from peftlab.model.mode import evaluating
from peftlab.tasks.encoding import IGNORED
from peftlab.tasks.language.loss import head_blocks
from peftlab.tasks.language.loss.hidden_states import (
    Selected,
    base_model,
    is_seq2seq,
    model_inputs,
    select,
    targets,
)
from peftlab.tasks.task import Batch

logger = logging.getLogger("peftlab")

LossMode = Literal["auto", "plain", "chunked"]
Kernel = Literal["liger", "torch", "blocks"]

_SLICE_ROWS = 2
_SLICE_TOKENS = 128
_SPARSE = 0.7
"""Below this share of trained positions, copying their logits is cheaper than a full softmax."""


def plain_loss_sum(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The loss from all logits [B, T, V]: the reference."""
    logits = model(**model_inputs(batch), use_cache=False).logits
    labels, trained = (tensor.to(logits.device) for tensor in targets(batch))
    if int(trained.sum()) < _SPARSE * trained.numel():
        logits, labels = logits[trained], labels[trained]
    return F.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )


@dataclass(frozen=True, slots=True)
class Proof:
    """The result of the check on a slice: kernels that equal the plain loss, or why none does."""

    kernels: frozenset[Kernel]
    reason: str | None


@dataclass(slots=True, weakref_slot=True)
class CausalLoss:
    """Computes the loss according to `mode`, and caches the check of each model."""

    mode: LossMode = "auto"
    _proofs: WeakKeyDictionary[nn.Module, Proof] = field(default_factory=WeakKeyDictionary)

    def loss_sum(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Summed over the batch's trained tokens, fp32; 0 (with a graph) where all are masked.

        Raises `CheckFailed` where mode "chunked" does not equal the plain loss on this model.
        """
        if self.mode == "plain":
            return plain_loss_sum(model, batch)
        proof = self.proof(model, batch)
        if proof is None or proof.reason is not None:
            return plain_loss_sum(model, batch)
        return chunked_loss_sum(select(model, batch), proof.kernels)

    def proof(self, model: nn.Module, batch: Batch) -> Proof | None:
        """The result of the check at the first batch with trained tokens; None before it."""
        known = self._proofs.get(model)
        if known is None and bool(targets(batch)[1].any()):
            known = self._proofs[model] = prove(model, batch)
            # Autocast may cache casts of weights made without gradient for the rest of the region,
            # in which the first micro-batch trains next.
            torch.clear_autocast_cache()
            if known.reason is None:
                logger.info("chunked loss: equal to the plain loss on a slice of the first batch")
            elif self.mode == "auto":
                logger.warning("plain loss instead of the chunked one: %s", known.reason)
        if known is not None and known.reason is not None and self.mode == "chunked":
            raise CheckFailed(
                f"train.loss=chunked cannot be used on this model: {known.reason}. "
                "Set train.loss to auto or plain."
            )
        return known

    @torch.no_grad()
    def score(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Per row [B]: summed cross-entropy in fp64, and the number of correct top-1 tokens."""
        proof = self.proof(model, batch)
        count = len(batch["labels"])
        if proof is not None and proof.reason is None:
            chosen = select(model, batch)
            losses, correct = head_blocks.token_losses(chosen.head, chosen.hidden, chosen.labels)
            return _per_row(losses, correct, chosen.rows, count)
        parts = [
            _score_whole(model, {name: value[row : row + 1] for name, value in batch.items()})
            for row in range(count)
        ]
        return torch.cat([loss for loss, _ in parts]), torch.cat([right for _, right in parts])


def _per_row(
    losses: torch.Tensor, correct: torch.Tensor, rows: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    # Converted on the CPU: not every device has float64.
    summed = torch.zeros(count, dtype=torch.float64).index_add_(
        0, rows.cpu(), losses.cpu().double()
    )
    right = torch.zeros(count, dtype=torch.int64).index_add_(0, rows.cpu(), correct.long().cpu())
    return summed, right


def _score_whole(model: nn.Module, row: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """One row from all logits [1, T, V]."""
    logits = model(**model_inputs(row), use_cache=False).logits
    labels, trained = (tensor.to(logits.device) for tensor in targets(row))
    logits, labels = logits[trained].float(), labels[trained]
    losses = F.cross_entropy(logits, labels, reduction="none")
    return _per_row(losses, logits.argmax(-1) == labels, torch.zeros_like(labels), 1)


def chunked_loss_sum(chosen: Selected, kernels: frozenset[Kernel]) -> torch.Tensor:
    """The loss of the selected positions by the fastest applicable kernel that passed the check."""
    if len(chosen.labels) == 0:
        return chosen.hidden.float().sum()
    kernel = _kernel(chosen)
    if kernel == "liger" and kernel in kernels:
        return _liger(chosen)
    if kernel == "torch" and kernel in kernels:
        return _torch(chosen)
    return head_blocks.loss_sum(chosen.head, chosen.hidden, chosen.labels)


def _kernel(chosen: Selected) -> Kernel:
    """Fused kernels read the weight directly, so they need a plain linear layer without hooks."""
    head, module, hidden = chosen.head, chosen.head.module, chosen.hidden
    bare = (
        type(module) is nn.Linear
        and module.bias is None
        and head.softcap is None
        and "forward" not in module.__dict__
        and not any(getattr(module, hooks) for hooks in _HOOKS)
    )
    if not bare:
        return "blocks"
    # Liger computes no weight gradient where the hidden states need none.
    alone = torch.is_grad_enabled() and module.weight.requires_grad and not hidden.requires_grad
    if _liger_runs_on(hidden.device) and not alone:
        return "liger"
    # It neither casts nor respects autocast.
    one_dtype = head.autocast is None and module.weight.dtype == hidden.dtype
    return "torch" if one_dtype and hasattr(F, "linear_cross_entropy") else "blocks"


def _liger_runs_on(device: torch.device) -> bool:
    return device.type == "cuda" and importlib.util.find_spec("liger_kernel") is not None


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _liger(chosen: Selected) -> torch.Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    # A trained weight's gradient is a sum over many blocks, which needs fp32 accumulation.
    loss = LigerFusedLinearCrossEntropyLoss(reduction="sum", accum_dtype=torch.float32)
    head, hidden = chosen.head, chosen.hidden
    dtype = head.autocast or hidden.dtype
    with torch.autocast(head.device_type, enabled=False):
        result: torch.Tensor = loss(head.module.weight.to(dtype), hidden.to(dtype), chosen.labels)
    return result.float()


def _torch(chosen: Selected) -> torch.Tensor:
    # Its automatic options are several times slower than all logits at once on a CPU.
    options = nn.LinearCrossEntropyOptions(
        batch_chunk_size=head_blocks.BLOCK_TOKENS, chunking_method=None
    )
    weight: Any = chosen.head.module.weight
    return F.linear_cross_entropy(
        chosen.hidden, weight, chosen.labels, reduction="sum", options=options
    ).float()


def prove(model: nn.Module, batch: Batch) -> Proof:
    """Compare both paths on a slice of a batch, in evaluation mode: logits and loss must agree."""
    base = base_model(model)
    skips = "logits_to_keep" in inspect.signature(type(base).forward).parameters
    if not skips and not is_seq2seq(batch):
        return Proof(frozenset(), f"{type(base).__name__} always computes all logits")
    part = _slice(batch)
    with evaluating(model), torch.no_grad():
        chosen = select(model, part)
        whole = model(**model_inputs(part), use_cache=False).logits
        labels, trained = (tensor.to(whole.device) for tensor in targets(part))
        expected = whole[trained].float()
        plain = F.cross_entropy(expected, labels[trained], reduction="sum")
        with chosen.head.arithmetic():
            logits = chosen.head.logits(chosen.hidden)
        single = whole.dtype == chosen.hidden.dtype == torch.float32 and not chosen.head.autocast
        scale = expected.abs().max().clamp_min(1e-12)
        error = float((logits - expected).abs().max() / scale)
        if not error <= (1e-4 if single else 3e-2):
            return Proof(
                frozenset(),
                f"{type(base).__name__} changes its logits after the head (error {error:.1%})",
            )
        tolerance = 1e-5 if single else 3e-3
        candidates: tuple[Kernel, ...] = (_kernel(chosen), "blocks")
        good = frozenset(
            kernel
            for kernel in candidates
            if abs(float(chunked_loss_sum(chosen, frozenset({kernel})) - plain))
            <= tolerance * abs(float(plain))
        )
    if "blocks" not in good:
        return Proof(frozenset(), "the loss differs from the plain one on a slice of the batch")
    return Proof(good, None)


def _slice(batch: Batch) -> Batch:
    """Two rows with trained tokens, cut a few tokens after the first of them."""
    _, trained = targets(batch)
    rows = trained.any(dim=1).nonzero()[:_SLICE_ROWS, 0]
    starts = trained[rows].int().argmax(dim=1)
    end = int(starts.max()) + _SLICE_TOKENS
    return {
        name: value[rows, :end] if value.dim() > 1 else value[rows] for name, value in batch.items()
    }
