"""Exact match and F1 of answers, and the no-answer threshold, as SQuAD 2.0 defines them.

Source: P. Rajpurkar, R. Jia, P. Liang, Know what you don't know: unanswerable questions for SQuAD,
ACL 2018, and the evaluation script published with it.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(answer: str) -> str:
    """Lower case, without ASCII punctuation and English articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact(prediction: str, true: Sequence[str]) -> float:
    """1 where a prediction equals a true answer after normalisation; no answer is empty text."""
    return float(any(normalised(prediction) == normalised(answer) for answer in _judged(true)))


def f1(prediction: str, true: Sequence[str]) -> float:
    """The best F1 of a prediction's words with those of a true answer; no answer is empty text."""
    return max(_f1(prediction, answer) for answer in _judged(true))


def _judged(true: Sequence[str]) -> Sequence[str]:
    """Answers that are not empty after normalisation; else the empty answer."""
    return [answer for answer in true if normalised(answer)] or [""]


def _f1(prediction: str, answer: str) -> float:
    predicted, expected = normalised(prediction).split(), normalised(answer).split()
    if not predicted or not expected:
        return float(predicted == expected)
    same = (Counter(predicted) & Counter(expected)).total()
    if same == 0:
        return 0.0
    precision, recall = same / len(predicted), same / len(expected)
    return 2 * precision * recall / (precision + recall)


def metrics(exacts: NDArray[Any], f1s: NDArray[Any], answerable: NDArray[Any]) -> dict[str, float]:
    """Means over all questions, those with an answer, and those without: arrays [questions].

    A kind of question that does not occur is left out.
    """
    means = {"exact": float(exacts.mean()), "f1": float(f1s.mean())}
    for name, kind in (("has_answer", answerable), ("no_answer", ~answerable)):
        if kind.any():
            means[f"{name}_exact"] = float(exacts[kind].mean())
            means[f"{name}_f1"] = float(f1s[kind].mean())
    return means


def best_threshold(leads: NDArray[Any], answered: NDArray[Any], unanswered: NDArray[Any]) -> float:
    """The threshold on `leads` with the greatest mean score, nearest to 0 of equally good ones.

    All [questions]: the null score minus the best span's, the metric if the question is answered,
    and the metric if not. A question is answered where its lead does not exceed the threshold.
    """
    order = np.argsort(leads, kind="stable")
    sorted_leads = leads[order]
    gains = np.concatenate([[0.0], np.cumsum((answered - unanswered)[order])])
    # Midway between leads, so that no question depends on rounding.
    middles = (sorted_leads[1:] + sorted_leads[:-1]) / 2
    places = np.concatenate([[sorted_leads[0] - 1], middles, [sorted_leads[-1] + 1]])
    # A threshold cannot separate equal leads.
    apart = np.concatenate([[True], sorted_leads[1:] > sorted_leads[:-1], [True]])
    apart &= np.isfinite(places)
    if not apart.any():
        return 0.0
    best = gains[apart].max()
    good = places[apart & (gains >= best - 1e-12)]
    return float(good[np.abs(good).argmin()])
