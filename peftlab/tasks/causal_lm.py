"""Causal language modelling: completions of prompts, or plain text."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import nn

from peftlab.config.tasks.causal_lm import CausalLMOptions
from peftlab.errors import ConfigError, DataError
from peftlab.model.head_spec import HeadSpec
from peftlab.tasks import intervals
from peftlab.tasks.causal_encoding import encode_pairs, encode_text, pack_text, prompt_ids
from peftlab.tasks.chunked_loss import CausalLoss, LossMode, targets
from peftlab.tasks.collate import PaddingCollator, pad_id_of
from peftlab.tasks.generation import generate, generation_config, prompt_room
from peftlab.tasks.prediction import check_rows, evaluating
from peftlab.tasks.task import Batch, Encoded, RowScores, Task

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

    from peftlab.data.sources import Splits

logger = logging.getLogger("peftlab")

_LARGEST_EXPONENT = 700.0


@dataclass(frozen=True, slots=True)
class CausalLM(Task):
    """Next-token cross-entropy, on the completion only where rows have a prompt.

    `separator` stands between prompt and completion: a line break, unless the data brings white
    space of its own there. `loss` is auto, plain or chunked (`with_settings`); it does not belong
    to `state`.
    """

    options: ClassVar[type[CausalLMOptions]] = CausalLMOptions

    paired: bool
    separator: str = ""
    loss: LossMode = "auto"
    _computed: CausalLoss = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_computed", CausalLoss(self.loss))

    def with_settings(self, *, loss: LossMode, generation: Mapping[str, Any] | None) -> Self:
        return replace(self, loss=loss)

    @classmethod
    def from_splits(cls, splits: Splits, options: CausalLMOptions) -> Self:
        if "completion" not in splits.columns:
            return cls(paired=False)
        if _has_boundary(splits.train):
            return cls(paired=True)
        logger.info("prompt and completion are separated by a line break, which the data lacks")
        return cls(paired=True, separator="\n")

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        return cls(bool(state["paired"]), str(state["separator"]))

    def state(self) -> dict[str, Any]:
        return {"paired": self.paired, "separator": self.separator}

    def head(self) -> HeadSpec:
        return HeadSpec("AutoModelForCausalLM")

    def encode(
        self,
        rows: datasets.Dataset,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        packing: bool = False,
    ) -> Encoded:
        if self.paired:
            if packing:
                raise ConfigError(
                    "data.packing joins plain text; these rows are prompts with completions. "
                    "Set data.packing=false."
                )
            return encode_pairs(rows, tokenizer, self.separator, max_length)
        return (pack_text if packing else encode_text)(rows, tokenizer, max_length)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[Batch]], Batch]:
        return PaddingCollator(pad_id_of(tokenizer))

    def loss_sum(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return self._computed.loss_sum(model, batch)

    def count_items(self, batch: Batch) -> int:
        return int(targets(batch)[1].sum())

    def score(self, model: nn.Module, batch: Batch) -> RowScores:
        losses, correct = self._computed.score(model, batch)
        return {
            "loss": losses.numpy(),
            "tokens": targets(batch)[1].sum(dim=1).cpu().numpy(),
            "correct": correct.numpy(),
        }

    def metrics(self, scores: RowScores) -> dict[str, float]:
        tokens = int(scores["tokens"].sum())
        if tokens == 0:
            raise DataError("no row of this split has a token to predict: every label is masked.")
        loss = float(scores["loss"].sum() / tokens)
        return {
            "loss": loss,
            "perplexity": float(_perplexity(np.asarray(loss))),
            "token_accuracy": float(scores["correct"].sum() / tokens),
        }

    def interval(self, scores: RowScores, metric: str) -> tuple[float, float]:
        if metric == "token_accuracy":
            return intervals.ratio_interval(scores["correct"], scores["tokens"])
        if metric not in self.greater_is_better:
            raise ConfigError(f"{metric!r} is none of {', '.join(self.greater_is_better)}.")
        transform = _perplexity if metric == "perplexity" else np.asarray
        return intervals.ratio_interval(scores["loss"], scores["tokens"], transform)

    @property
    def asked_role(self) -> str:
        return "prompt" if self.paired else "text"

    def untuned(self, splits: Splits) -> RowScores | None:
        """None: what a language model knows untuned is the base model's own to tell."""
        return None

    def predict(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Mapping[str, Any]],
        *,
        max_length: int,
        batch_size: int,
        generation: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """`{"text", "finished"}` for each row's `prompt` (or, of plain text, `text`)."""
        role = self.asked_role
        check_rows(rows, (role,))
        config = generation_config(model, tokenizer, generation)
        room = prompt_room(model, max_length, int(config.max_new_tokens))
        prompts = prompt_ids(tokenizer, [row[role] for row in rows], self.separator, room)
        answers: list[dict[str, Any]] = []
        with evaluating(model):
            for start in range(0, len(prompts), batch_size):
                answers += generate(model, tokenizer, prompts[start : start + batch_size], config)
        return answers


def _perplexity(loss: Any) -> Any:
    return np.exp(np.minimum(loss, _LARGEST_EXPONENT))


def _has_boundary(rows: datasets.Dataset) -> bool:
    """Whether white space already parts prompt and completion, in nine rows of ten."""
    first = rows[:1000]
    parted = [
        prompt[-1:].isspace() or completion[:1].isspace()
        for prompt, completion in zip(first["prompt"], first["completion"], strict=True)
    ]
    return bool(sum(parted) >= 0.9 * len(parted))
