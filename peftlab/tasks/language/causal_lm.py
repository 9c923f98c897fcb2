"""Causal language modelling: plain text, completions of prompts, answers in conversations."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import nn

from peftlab.config.tasks.causal_lm import CausalLMOptions
from peftlab.errors import DataError
from peftlab.model.head_spec import HeadSpec
from peftlab.tasks.collate import PaddingCollator, pad_id_of
from peftlab.tasks.language.causal_rows import Chats, Rows, rows_from_state, rows_of
from peftlab.tasks.language.generation import generate, generation_config, prompt_room
from peftlab.tasks.language.isolation import check_packed
from peftlab.tasks.language.loss.chunked_loss import CausalLoss, LossMode
from peftlab.tasks.language.loss.hidden_states import targets
from peftlab.tasks.language.preview import shown_mask
from peftlab.tasks.predictor import Predictor
from peftlab.tasks.statistics import intervals
from peftlab.tasks.task import Batch, Encoded, RowScores, Task

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

    from peftlab.data.splits import Splits

_LARGEST_EXPONENT = 700.0


@dataclass(frozen=True, slots=True)
class CausalLM(Task):
    """Next-token cross-entropy on the tokens that `rows` selects.

    `loss` is auto, plain or chunked (`with_settings`) and not part of `state`.
    """

    options: ClassVar[type[CausalLMOptions]] = CausalLMOptions

    rows: Rows
    loss: LossMode = "auto"
    _computed: CausalLoss = field(init=False, repr=False, compare=False)
    _model: Any = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_computed", CausalLoss(self.loss))

    def with_settings(self, *, loss: LossMode, generation: Mapping[str, Any] | None) -> Self:
        return replace(self, loss=loss)

    def attach(self, tokenizer: PreTrainedTokenizerBase, model: nn.Module | None) -> Self:
        attached = replace(self, rows=self.rows.attach(tokenizer))
        if model is not None:
            # `encode` checks it where rows are packed.
            object.__setattr__(attached, "_model", weakref.ref(model))
        return attached

    @classmethod
    def from_splits(cls, splits: Splits, options: CausalLMOptions) -> Self:
        return cls(rows_of(splits, options))

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        return cls(rows_from_state(state))

    def state(self) -> dict[str, Any]:
        return self.rows.state()

    def head(self) -> HeadSpec:
        return HeadSpec("AutoModelForCausalLM")

    def _encode(
        self,
        rows: datasets.Dataset,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        packing: bool,
    ) -> Encoded:
        encoded = self.rows.encode(rows, tokenizer, max_length, packing)
        if "position_ids" in encoded.rows.column_names and self._model is not None:
            check_packed(self._model(), encoded.rows)
        return encoded

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

    def _interval(self, scores: RowScores, metric: str) -> tuple[float, float]:
        if metric == "token_accuracy":
            return intervals.ratio_interval(scores["correct"], scores["tokens"])
        transform = _perplexity if metric == "perplexity" else np.asarray
        return intervals.ratio_interval(scores["loss"], scores["tokens"], transform)

    @property
    def input_role(self) -> str:
        return self.rows.input_role

    @property
    def stops(self) -> tuple[int, ...]:
        return self.rows.stops

    def input_row(
        self, text: str, earlier: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]] = ()
    ) -> dict[str, Any]:
        if not isinstance(self.rows, Chats):
            return {self.input_role: text}
        messages: list[Any] = []
        if earlier:
            row, answer = earlier[-1]
            messages = [*row["messages"], {"role": "assistant", "content": answer["text"]}]
            if not answer["text"].strip():
                # An empty answer: templates have no such turn.
                messages = messages[:-2]
        return {"messages": [*messages, {"role": "user", "content": text}]}

    def preview(self, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """The text has brackets around the trained tokens."""
        return shown_mask(row, tokenizer)

    def _answers(
        self, rows: Sequence[Mapping[str, Any]], predictor: Predictor
    ) -> list[dict[str, Any]]:
        """`{"text", "finished"}` for each row: the completion, and whether it ended by itself.

        Trailing assistant turns of a conversation are dropped and generated anew.
        """
        self.rows.check(rows)
        model, tokenizer = predictor.model, predictor.tokenizer
        config = generation_config(model, tokenizer, predictor.generation, self.stops)
        room = prompt_room(model, predictor.max_length, int(config.max_new_tokens))
        prompts = self.rows.prompts(rows, tokenizer, room)
        return [
            answer
            for part in predictor.parts(prompts)
            for answer in generate(model, tokenizer, part, config)
        ]


def _perplexity(loss: Any) -> Any:
    return np.exp(np.minimum(loss, _LARGEST_EXPONENT))
