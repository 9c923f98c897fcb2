"""Sequence to sequence: an encoder reads a source, a decoder generates a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import nn

from peftlab.config.tasks.seq2seq import Seq2SeqOptions
from peftlab.errors import ConfigError
from peftlab.model.head_spec import HeadSpec
from peftlab.tasks.collate import pad_id_of
from peftlab.tasks.encoding import check_rows
from peftlab.tasks.language.generation import generate, generation_config
from peftlab.tasks.language.languages import Languages, set_languages
from peftlab.tasks.language.loss.chunked_loss import CausalLoss, LossMode
from peftlab.tasks.language.loss.hidden_states import targets
from peftlab.tasks.language.preview import shown_pair
from peftlab.tasks.language.seq2seq_encoding import (
    Seq2SeqCollator,
    check_room,
    encode_seq2seq,
    end_token,
    source_ids,
    start_token,
    warn_of_cut,
    warn_of_short_texts,
)
from peftlab.tasks.language.text_metrics import TextMetrics, text_metrics
from peftlab.tasks.predictor import Predictor
from peftlab.tasks.statistics import intervals
from peftlab.tasks.task import Batch, Encoded, RowScores, Task

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

    from peftlab.data.splits import Splits


@dataclass(frozen=True, slots=True)
class Seq2Seq(Task):
    """Cross-entropy on the target's tokens, end token included; evaluation generates texts.

    `start` is the decoder's start token and `forced` the token of the target's language that each
    target begins with, known once the task is attached to a model. `loss` and
    `generation` are shared settings (`with_settings`) and not part of `state`, nor is `signature`,
    sacreBLEU's own.
    """

    options: ClassVar[type[Seq2SeqOptions]] = Seq2SeqOptions

    prefix: str
    max_target_length: int
    measured: TextMetrics
    start: int | None = None
    src_lang: str | None = None
    tgt_lang: str | None = None
    forced: int | None = None
    loss: LossMode = "auto"
    generation: Mapping[str, Any] | None = None
    signature: str | None = field(repr=False, compare=False, default=None)
    _computed: CausalLoss = field(init=False, repr=False, compare=False)
    _tokenizer: Any = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_computed", CausalLoss(self.loss))

    @property
    def best_metric(self) -> str:
        return self.measured.best or "loss"

    @property
    def greater_is_better(self) -> Mapping[str, bool]:
        known = self.options.metrics
        return {name: known[name] for name in (*self.measured.names, "token_accuracy", "loss")}

    @classmethod
    def from_splits(cls, splits: Splits, options: Seq2SeqOptions) -> Self:
        measured, signature = text_metrics(splits.train, options)
        return cls(
            options.prefix, options.max_target_length, measured,
            src_lang=options.src_lang, tgt_lang=options.tgt_lang, signature=signature,
        )  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        measured = TextMetrics(
            tuple(state["text_metrics"]), state.get("bleu_tokenizer", "13a"), state["rouge_stemmer"]
        )
        return cls(
            state["prefix"], state["max_target_length"], measured, state["start"],
            state.get("src_lang"), state.get("tgt_lang"), state.get("forced"),
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        return {
            "prefix": self.prefix,
            "max_target_length": self.max_target_length,
            "text_metrics": list(self.measured.chosen),
            "bleu_tokenizer": self.measured.bleu_tokenizer,
            "rouge_stemmer": self.measured.rouge_stemmer,
            "start": self.start,
            # Absent in records of earlier versions, which know no languages.
            **({"src_lang": self.src_lang} if self.src_lang else {}),
            **({"tgt_lang": self.tgt_lang} if self.tgt_lang else {}),
            **({} if self.forced is None else {"forced": self.forced}),
        }

    @property
    def measured_by(self) -> Mapping[str, str]:
        return {} if self.signature is None else {"bleu": self.signature}

    def as_from_splits(self) -> Self:
        """Without the start token and the forced one, which belong to the model."""
        return replace(self, start=None, forced=None)

    def without_texts(self) -> Self:
        return replace(self, measured=replace(self.measured, chosen=()))

    def head(self) -> HeadSpec:
        return HeadSpec("AutoModelForSeq2SeqLM")

    def with_settings(self, *, loss: LossMode, generation: Mapping[str, Any] | None) -> Self:
        """Raises `ConfigError` where evaluation would sample its texts."""
        if generation is not None and generation["do_sample"] and self.measured.chosen:
            raise ConfigError(
                "eval.generation.do_sample is true, and task.text_metrics would measure texts that "
                "are sampled anew each time; set task.text_metrics to [], or leave do_sample out: "
                "from Python, run.predict(texts, do_sample=True) still samples."
            )
        return replace(self, loss=loss, generation=generation)

    def attach(self, tokenizer: PreTrainedTokenizerBase, model: nn.Module | None) -> Self:
        """With the model's start token, and the tokenizer's languages set.

        Raises `CheckFailed` without a start or an end token, `ConfigError` for languages that the
        tokenizer does not have, or that nothing names.
        """
        end_token(tokenizer)
        languages = self._set_languages(tokenizer)
        if languages is not None:
            self = replace(self, src_lang=languages.source, tgt_lang=languages.target)
        if model is None:
            return self
        check_room(model, self.max_target_length, "task.max_target_length")
        if self.generation is not None and self.measured.chosen:
            # The start token takes a position, and the last token of a target takes none.
            limit = int(self.generation["max_new_tokens"])
            check_room(model, limit, "eval.generation.max_new_tokens")
        if languages is None:
            return replace(self, start=start_token(model))
        start = start_token(model) if languages.start is None else languages.start
        return replace(self, start=start, forced=languages.forced)

    def _set_languages(self, tokenizer: PreTrainedTokenizerBase) -> Languages | None:
        return set_languages(tokenizer, self.src_lang, self.tgt_lang)

    @property
    def generation_defaults(self) -> Mapping[str, Any]:
        if self.tgt_lang is None:
            return {}
        return {"decoder_start_token_id": self.start, "forced_bos_token_id": self.forced}

    def _encode(
        self,
        rows: datasets.Dataset,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        packing: bool,
    ) -> Encoded:
        encoded = encode_seq2seq(
            rows, tokenizer,
            prefix=self.prefix, max_length=max_length, target_limit=self.max_target_length,
            languages=self._set_languages(tokenizer),
        )  # fmt: skip
        if self.generation is not None and self.measured.chosen:
            warn_of_short_texts(encoded, int(self.generation["max_new_tokens"]))
        return encoded

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[Batch]], Batch]:
        """`score` decodes generated texts with this tokenizer."""
        if self.start is None:
            raise RuntimeError("attach the task to a model first: batches need its start token")
        object.__setattr__(self, "_tokenizer", tokenizer)
        return Seq2SeqCollator(pad_id_of(tokenizer), self.start)

    def loss_sum(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return self._computed.loss_sum(model, self._labelled(batch))

    def count_items(self, batch: Batch) -> int:
        return int(targets(batch)[1].sum())

    def _labelled(self, batch: Batch) -> Batch:
        return {**self.model_inputs(batch), "labels": batch["labels"]}

    def score(self, model: nn.Module, batch: Batch) -> RowScores:
        """Loss and accuracy under teacher forcing, and metrics of generated texts."""
        losses, correct = self._computed.score(model, self._labelled(batch))
        scores: RowScores = {
            "loss": losses.numpy(),
            "tokens": targets(batch)[1].sum(dim=1).cpu().numpy(),
            "correct": correct.numpy(),
        }
        if self.measured.chosen:
            sources = [
                ids[mask.bool()].tolist()
                for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
            ]
            answers = self._generate(model, self._tokenizer, sources, self.generation)
            texts = [answer["text"] for answer in answers]
            scores |= self.measured.score(texts, batch["references"])
        return scores

    def _generate(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        sources: Sequence[list[int]],
        settings: Mapping[str, Any] | None,
    ) -> list[dict[str, Any]]:
        config = generation_config(model, tokenizer, settings)
        config.decoder_start_token_id = self.start
        if self.forced is not None:
            config.forced_bos_token_id = self.forced
        return generate(model, tokenizer, sources, config)

    def metrics(self, scores: RowScores) -> dict[str, float]:
        """Text metrics range from 0 to 100."""
        tokens = int(scores["tokens"].sum())
        return {
            **self.measured.values(scores),
            "token_accuracy": float(scores["correct"].sum() / tokens),
            "loss": float(scores["loss"].sum() / tokens),
        }

    def _interval(self, scores: RowScores, metric: str) -> tuple[float, float]:
        if metric in self.measured.names:
            return self.measured.interval(scores, metric)
        column = "correct" if metric == "token_accuracy" else "loss"
        return intervals.ratio_interval(np.asarray(scores[column]), np.asarray(scores["tokens"]))

    @property
    def input_role(self) -> str:
        return "prompt"

    def preview(self, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """The source, and the target in brackets."""
        return shown_pair(row, tokenizer)

    def _answers(
        self, rows: Sequence[Mapping[str, Any]], predictor: Predictor
    ) -> list[dict[str, Any]]:
        """`{"text", "finished"}` for each row: the target, and whether it ended by itself."""
        check_rows(rows, ("prompt",))
        limit = int((predictor.generation or {}).get("max_new_tokens", 1))
        check_room(predictor.model, limit, "eval.generation.max_new_tokens")
        self._set_languages(predictor.tokenizer)
        sources, lengths = source_ids(
            predictor.tokenizer, [self.prefix + row["prompt"] for row in rows], predictor.max_length
        )
        warn_of_cut(lengths, predictor.max_length)
        return [
            answer
            for part in predictor.parts(sources)
            for answer in self._generate(
                predictor.model, predictor.tokenizer, part, predictor.generation
            )
        ]
