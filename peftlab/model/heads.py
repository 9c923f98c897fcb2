"""Heads on a frozen base: one that pools token features, and one on cached features.

Legend: B rows, T tokens, H features, C classes.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput

from peftlab.model.pooling import Pooling, pool


class PooledClassifier(nn.Module):
    """A frozen base, pooling, and one linear layer: what method `head` trains.

    The base is always in eval mode, and without a backward pass. `config` is the
    base's, with the task's labels.
    """

    def __init__(self, base: nn.Module, pooling: Pooling, classes: int) -> None:
        super().__init__()
        self.base = base
        config: Any = base.config
        self.config = config
        self.pooling: Pooling = pooling
        text = config.get_text_config()
        hidden = int(text.hidden_size)
        device = next(base.parameters()).device
        self.head = nn.Linear(hidden, classes, device=device, dtype=torch.float32)
        if device.type != "meta":
            deviation = getattr(text, "initializer_range", None) or 0.02
            nn.init.normal_(self.head.weight, std=float(deviation))
            nn.init.zeros_(self.head.bias)
        self.base.eval()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.base.eval()
        return self

    def features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None,
                 **others: Any) -> torch.Tensor:  # fmt: skip
        """input_ids, attention_mask [B, T] -> pooled features [B, H] in fp32, without gradient."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        inputs = {k: v for k, v in others.items() if k in {"token_type_ids", "position_ids"}}
        with torch.no_grad():
            outputs = self.base(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        return pool(outputs.last_hidden_state, attention_mask, self.pooling)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None,
                **others: Any) -> SequenceClassifierOutput:  # fmt: skip
        """input_ids, attention_mask [B, T] -> `.logits` [B, C]."""
        pooled = self.features(input_ids, attention_mask, **others)
        return SequenceClassifierOutput(logits=self.head(pooled))

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.base.get_input_embeddings()  # type: ignore[operator]
        return embeddings

    def get_output_embeddings(self) -> None:
        """None: the head is a classifier."""

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = None) -> None:
        """Nothing to do: no activation of the base is kept for the backward pass."""

    @property
    def device(self) -> torch.device:
        return self.head.weight.device


class CachedFeatures(nn.Module):
    """In the place of the base: returns features that were computed before."""

    def forward(self, features: torch.Tensor, **_: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=features)


class FeatureHead(nn.Module):
    """A model's own head module on cached features: [B, H] or [B, T, H] -> `.logits`.

    Training it trains the head of that model. `dropout` is the model's dropout between features
    and head.
    """

    def __init__(
        self,
        head: nn.Module,
        config: Any,
        *,
        kind: Literal["classification", "causal"],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.decoder = CachedFeatures()
        self.dropout = nn.Dropout(dropout)
        self.head = head
        self.config = config
        self.kind = kind

    def forward(
        self, features: torch.Tensor, logits_to_keep: int | torch.Tensor = 0, **_: Any
    ) -> SequenceClassifierOutput:
        """features [B, H] or [B, T, H] -> `.logits`; `logits_to_keep` as Transformers has it."""
        hidden = self.dropout(self.decoder(features=features).last_hidden_state)
        if self.kind == "causal":
            kept = (
                slice(-logits_to_keep or None, None)
                if isinstance(logits_to_keep, int)
                else logits_to_keep
            )
            hidden = hidden[:, kept]
        return SequenceClassifierOutput(logits=self.head(hidden))

    def get_decoder(self) -> nn.Module:
        """The module that returns hidden states, for losses that apply the head themselves."""
        return self.decoder

    def get_output_embeddings(self) -> nn.Module | None:
        return self.head if self.kind == "causal" else None

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = None) -> None:
        """Nothing to do: a single layer has nothing worth recomputing."""

    @property
    def device(self) -> torch.device:
        return next(self.head.parameters()).device
