"""Extractive question answering: the span of a context that answers, or no answer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from peftlab.config.tasks.question_answering import QuestionAnsweringOptions
from peftlab.model.head_spec import HeadSpec
from peftlab.tasks.answering import squad_metrics
from peftlab.tasks.answering.answer_spans import Ranked, best_spans, objects, ranked_questions
from peftlab.tasks.answering.question_windows import encoded_questions
from peftlab.tasks.collate import PaddingCollator, pad_id_of
from peftlab.tasks.encoding import Gathered, RefusedRows, as_rows, batches_of, check_rows
from peftlab.tasks.predictor import Predictor
from peftlab.tasks.statistics import intervals
from peftlab.tasks.task import Batch, Encoded, RowScores, Task

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

    from peftlab.data.splits import Splits


@dataclass(frozen=True, slots=True)
class QuestionAnswering(Task):
    """Mean cross-entropy of an answer's first and last token, summed over windows of contexts.

    The target of a window without the answer is the null position (see `QuestionFrame`). The
    prediction is no answer where the null score exceeds the best span's by more than `threshold`;
    None: to be chosen on validation, 0 until then.
    """

    options: ClassVar[type[QuestionAnsweringOptions]] = QuestionAnsweringOptions

    stride: int | Literal["auto"] = "auto"
    max_answer_length: int = 30
    n_best: int = 20
    threshold: float | None = None
    chosen: bool = False

    @classmethod
    def from_splits(cls, splits: Splits, options: QuestionAnsweringOptions) -> Self:
        threshold = None if options.null_threshold == "auto" else float(options.null_threshold)
        return cls(options.stride, options.max_answer_length, options.n_best, threshold)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        return cls(**state)

    def state(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "max_answer_length": self.max_answer_length,
            "n_best": self.n_best,
            "threshold": self.threshold,
            "chosen": self.chosen,
        }

    def with_threshold(self, scores: RowScores) -> Self:
        """With the threshold of the best F1, where it is open and some questions have no answer.

        The same search as in the evaluation script of SQuAD 2.0.
        """
        if self.threshold is not None and not self.chosen:
            return self
        ranked, true = ranked_questions(scores, n_best=self.n_best)
        if all(true):
            return self
        best = squad_metrics.best_threshold(
            np.asarray([question.lead for question in ranked]),
            np.asarray([squad_metrics.f1(q.text, t) for q, t in zip(ranked, true, strict=True)]),
            np.asarray([squad_metrics.f1("", answers) for answers in true]),
        )
        return replace(self, threshold=best, chosen=True)

    def as_from_splits(self) -> Self:
        return replace(self, threshold=None, chosen=False) if self.chosen else self

    def head(self) -> HeadSpec:
        return HeadSpec("AutoModelForQuestionAnswering", {"num_labels": 2})

    def _encode(
        self,
        rows: datasets.Dataset,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        packing: bool,
    ) -> Encoded:
        """One row per window; a question's first window has its `context` and `answers` (JSON)."""
        gathered, refused = Gathered(), RefusedRows()
        done = 0
        for batch in batches_of(rows):
            count = len(batch["question"])
            with refused.batch(done):
                self._add(gathered, batch, tokenizer, max_length, done)
            done += count
        refused.raise_any()
        return gathered.encoded()

    def _add(
        self,
        gathered: Gathered,
        batch: Mapping[str, Any],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        done: int,
    ) -> None:
        """Add the windows of a batch that `done` rows came before. Raises `BadRows`."""
        windows = encoded_questions(
            batch["question"], batch["context"], batch["answers"], tokenizer,
            max_length=max_length, stride=self.stride, first_row=done,
        )  # fmt: skip
        columns = dict(windows.columns)
        first = np.diff([done - 1, *columns["row"]]).tolist()
        at = [row - done for row in columns["row"]]
        columns["context"] = [
            batch["context"][i] if new else "" for i, new in zip(at, first, strict=True)
        ]
        columns["answers"] = [
            json.dumps(batch["answers"][i]["text"]) if new else ""
            for i, new in zip(at, first, strict=True)
        ]
        gathered.add(
            columns, whole_lengths=windows.lengths, truncated=windows.cut,
            trained=len(windows.lengths),
        )  # fmt: skip

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[Batch]], Batch]:
        return PaddingCollator(pad_id_of(tokenizer))

    def _logits(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of first and last tokens, [B, T] each in fp32; padding is masked."""
        output = model(**self.model_inputs(batch))
        padding = batch["attention_mask"].to(output.start_logits.device) == 0
        return tuple(
            logits.float().masked_fill(padding, torch.finfo(torch.float32).min)
            for logits in (output.start_logits, output.end_logits)
        )

    def _losses(self, starts: torch.Tensor, ends: torch.Tensor, batch: Batch) -> torch.Tensor:
        first, last = (batch[f"{end}_positions"].to(starts.device) for end in ("start", "end"))
        losses: torch.Tensor = F.cross_entropy(starts, first, reduction="none")
        return (losses + F.cross_entropy(ends, last, reduction="none")) / 2

    def loss_sum(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return self._losses(*self._logits(model, batch), batch).sum()

    def count_items(self, batch: Batch) -> int:
        return len(batch["row"])

    @torch.no_grad()
    def score(self, model: nn.Module, batch: Batch) -> RowScores:
        """Loss, best spans and the score of no answer of each window."""
        starts, ends = self._logits(model, batch)
        losses = self._losses(starts, ends, batch)
        return {
            "loss": losses.cpu().double().numpy(),
            "row": batch["row"].cpu().numpy(),
            "context": objects(batch["context"]),
            "answers": objects(batch["answers"]),
            **self._spans(starts, ends, batch),
        }

    def _spans(self, starts: torch.Tensor, ends: torch.Tensor, batch: Batch) -> RowScores:
        start, end = starts.cpu().numpy(), ends.cpu().numpy()
        spans, nulls = [], []
        for i, null in enumerate(batch["null"].tolist()):
            nulls.append(float(start[i, null]) + float(end[i, null]))
            characters = list(
                zip(batch["char_starts"][i].tolist(), batch["char_ends"][i].tolist(), strict=True)
            )
            spans.append(
                best_spans(
                    start[i], end[i], characters, batch["owned"][i].tolist(),
                    n_best=self.n_best, longest=self.max_answer_length,
                )
            )  # fmt: skip
        return {"spans": objects(spans), "null": np.asarray(nulls)}

    def _judged(self, scores: RowScores) -> tuple[Any, Any, Any]:
        """Exact match, F1, and whether the question has an answer: [questions] each."""
        ranked, true = ranked_questions(scores, n_best=self.n_best)
        threshold = self.threshold or 0.0
        texts = ["" if question.lead > threshold else question.text for question in ranked]
        pairs = list(zip(texts, true, strict=True))
        return (
            np.asarray([squad_metrics.exact(text, answers) for text, answers in pairs]),
            np.asarray([squad_metrics.f1(text, answers) for text, answers in pairs]),
            np.asarray([bool(answers) for answers in true]),
        )

    def metrics(self, scores: RowScores) -> dict[str, float]:
        return {
            **squad_metrics.metrics(*self._judged(scores)),
            "loss": float(scores["loss"].mean()),
        }

    def _interval(self, scores: RowScores, metric: str) -> tuple[float, float]:
        if metric == "loss":
            return intervals.ratio_interval(scores["loss"], np.ones(len(scores["loss"])))
        exacts, f1s, answerable = self._judged(scores)
        values = exacts if metric.endswith("exact") else f1s
        kind = {"has": answerable, "no_": ~answerable}.get(metric[:3], np.ones_like(answerable))
        return intervals.ratio_interval(values * kind, kind.astype(np.float64))

    def untuned(self, splits: Splits) -> RowScores | None:
        """No answer to every question; the loss is that of a uniform guess over the context."""
        held_out = splits.held_out
        if held_out is None:
            return None
        context, answers = held_out["context"], held_out["answers"]
        count = len(held_out)
        return {
            "loss": np.log([1 + len(text.split()) for text in context]),
            "row": np.arange(count),
            "context": objects(context),
            "answers": objects([json.dumps(answer["text"]) for answer in answers]),
            "spans": objects([[] for _ in range(count)]),
            "null": np.zeros(count),
        }

    @property
    def untuned_name(self) -> str:
        return "no answer"

    @property
    def input_role(self) -> str:
        return "question"

    def input_row(
        self, text: str, earlier: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]] = ()
    ) -> dict[str, Any]:
        """The question ends at the first question mark; the context follows it.

        Without a context, the previous question's is used.
        """
        match = re.fullmatch(r"(.*?[?？])\s*(.*)", text.strip(), re.DOTALL)  # noqa: RUF001
        question, context = match.groups() if match else (text, "")
        if not context and earlier:
            context = str(earlier[-1][0].get("context", ""))
        return {"question": question, **({"context": context} if context else {})}

    def answer_text(self, answer: Mapping[str, Any]) -> str:
        if not answer["answer"]:
            return f"(no answer, {answer['no_answer']:.3g})"
        return f"{answer['answer']} ({answer['score']:.3g})"

    def preview(self, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """With `answer`, the text of the answer's tokens."""
        first, last = row["start_positions"], row["end_positions"]
        answer = str(tokenizer.decode(row["input_ids"][first : last + 1])).strip()
        shown = Task.preview(self, row, tokenizer)
        return {**shown, "answer": "(none here)" if first == row["null"] else answer}

    def _answers(
        self, rows: Sequence[Mapping[str, Any]], predictor: Predictor
    ) -> list[dict[str, Any]]:
        """`answer` with score, character span, `no_answer` and `n_best`; see `Ranked.answer`."""
        check_rows(rows, ("question", "context"))
        contexts = [str(row["context"]) for row in rows]
        windows = encoded_questions(
            [str(row["question"]) for row in rows], contexts, None, predictor.tokenizer,
            max_length=predictor.max_length, stride=self.stride, first_row=0,
        )  # fmt: skip
        collate = self.collator(predictor.tokenizer)
        spans: list[list[Any]] = [[] for _ in rows]
        nulls: list[list[float]] = [[] for _ in rows]
        for part in predictor.parts(as_rows(windows.columns)):
            batch = predictor.batch(part, collate)
            scores = self._spans(*self._logits(predictor.model, batch), batch)
            for i, window in enumerate(part):
                spans[window["row"]].append(scores["spans"][i])
                nulls[window["row"]].append(float(scores["null"][i]))
        return [
            Ranked.of(context, own, null, n_best=self.n_best).answer(self.threshold or 0.0)
            for context, own, null in zip(contexts, spans, nulls, strict=True)
        ]
