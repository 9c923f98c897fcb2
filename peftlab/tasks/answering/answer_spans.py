"""The best spans of a window and of a whole context, and the answer they give."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Candidate = tuple[float, int, int]
"""Score, and the character span in the context."""


def best_spans(
    starts: NDArray[Any],
    ends: NDArray[Any],
    characters: Sequence[tuple[int, int]],
    owned: Sequence[bool],
    *,
    n_best: int,
    longest: int,
) -> list[Candidate]:
    """The spans of one window with the greatest sums of logits, the best first; all [T].

    `characters` are empty for tokens outside the context, which is one contiguous part of the
    window; spans lie within it. A span begins at a token that the window owns, so that windows do
    not repeat each other, and has at most `longest` tokens.
    """
    inside = np.asarray([end > start for start, end in characters])
    begins = inside & np.asarray(owned, dtype=bool)
    first, last = np.nonzero(begins)[0], np.nonzero(inside)[0]
    if not len(first):
        return []
    distance = last[None, :] - first[:, None]
    scores = np.where(
        (distance >= 0) & (distance < longest),
        starts[first][:, None] + ends[last][None, :],
        -np.inf,
    ).ravel()
    kept = min(n_best, len(scores))
    best = np.argpartition(-scores, kept - 1)[:kept]
    best = best[np.argsort(-scores[best], kind="stable")]
    spans = []
    for flat in best[np.isfinite(scores[best])].tolist():
        begin, end = first[flat // len(last)], last[flat % len(last)]
        spans.append((float(scores[flat]), characters[begin][0], characters[end][1]))
    return spans


@dataclass(frozen=True, slots=True)
class Ranked:
    """A question's candidates over all windows of its context, the best first.

    `null` is the score of no answer: the minimum over the windows, as any of them may contain the
    answer.
    """

    context: str
    candidates: tuple[Candidate, ...]
    null: float

    @classmethod
    def of(
        cls, context: str, windows: Sequence[Sequence[Candidate]], nulls: Sequence[float], *,
        n_best: int,
    ) -> Ranked:  # fmt: skip
        """Join windows; spans that differ in surrounding white space only are merged."""
        best: dict[tuple[int, int], float] = {}
        for score, start, end in (candidate for window in windows for candidate in window):
            text = context[start:end]
            place = (start + len(text) - len(text.lstrip()), end - len(text) + len(text.rstrip()))
            if place[0] < place[1]:
                best[place] = max(score, best.get(place, -np.inf))
        ordered = sorted(((score, *place) for place, score in best.items()), key=lambda c: -c[0])
        return cls(context, tuple(ordered[:n_best]), min(nulls))

    @property
    def lead(self) -> float:
        """The null score minus the best span's; infinite without a span."""
        return self.null - self.candidates[0][0] if self.candidates else float("inf")

    @property
    def text(self) -> str:
        """The best span."""
        if not self.candidates:
            return ""
        _, start, end = self.candidates[0]
        return self.context[start:end]

    def answer(self, threshold: float) -> dict[str, Any]:
        """The answer of `predict`: answer, score, start, end, no_answer, n_best; JSON values.

        Scores are a softmax over the candidates and no answer. No answer is "", with start and end
        null.
        """
        scores = np.asarray([self.null, *(score for score, _, _ in self.candidates)])
        shares = np.exp(scores - scores.max())
        shares /= shares.sum()
        n_best = [
            {"text": self.context[start:end], "score": float(share), "start": start, "end": end}
            for share, (_, start, end) in zip(shares[1:], self.candidates, strict=True)
        ]
        no_answer = float(shares[0])
        if self.lead > threshold:
            best: dict[str, Any] = {"score": no_answer, "start": None, "end": None}
            return {"answer": "", **best, "no_answer": no_answer, "n_best": n_best}
        best = dict(n_best[0])
        return {"answer": best.pop("text"), **best, "no_answer": no_answer, "n_best": n_best}


def ranked_questions(
    scores: Mapping[str, Any], *, n_best: int
) -> tuple[list[Ranked], list[list[str]]]:
    """Questions from their windows' scores, in the order of their rows, and their true answers.

    `scores` has arrays [windows]: row, spans and null, and context and answers (JSON) with the
    first window of each question.
    """
    windows: dict[int, list[int]] = {}
    for window, row in enumerate(scores["row"].tolist()):
        windows.setdefault(row, []).append(window)
    ranked, true = [], []
    for row in sorted(windows):
        own = windows[row]
        spans = [scores["spans"][i] for i in own]
        nulls = [float(scores["null"][i]) for i in own]
        context = "".join(scores["context"][i] for i in own)
        ranked.append(Ranked.of(context, spans, nulls, n_best=n_best))
        true.append(json.loads("".join(scores["answers"][i] for i in own)))
    return ranked, true


def objects(values: Sequence[Any]) -> NDArray[Any]:
    """An array of objects [len(values)], even where they are lists of one length."""
    array = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        array[index] = value
    return array
