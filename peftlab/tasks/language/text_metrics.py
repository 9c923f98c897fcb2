"""Metrics of generated texts: chrF and BLEU by sacreBLEU, ROUGE by rouge_score.

Each row yields numbers whose sums (chrF, BLEU) or mean (ROUGE) over a split give the metric, so
that rows can be scored in batches and resampled for an interval. All range from 0 to 100.

Sources: M. Popovic, chrF: character n-gram F-score for automatic MT evaluation, WMT 2015; K.
Papineni et al., BLEU: a method for automatic evaluation of machine translation, ACL 2002; M. Post,
A call for clarity in reporting BLEU scores, WMT 2018; C.-Y. Lin, ROUGE: a package for automatic
evaluation of summaries, Text Summarization Branches Out, 2004.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from peftlab.tasks.statistics import intervals

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric

Array = np.ndarray[Any, Any]

ROUGE = ("rouge1", "rouge2", "rougeL")
_REPORTED: Mapping[str, tuple[str, ...]] = {"chrf": ("chrf",), "bleu": ("bleu",), "rouge": ROUGE}
_CHOOSING: Mapping[str, str] = {"chrf": "chrf", "bleu": "bleu", "rouge": "rougeL"}


@dataclass(frozen=True, slots=True)
class TextMetrics:
    """The metrics `chosen`, of chrf, bleu and rouge.

    BLEU sums over the corpus and takes the reference nearest in length; chrF and ROUGE take the
    best reference of each row. ROUGE compares the letters a to z and digits only and ignores other
    scripts.
    """

    chosen: tuple[str, ...]
    bleu_tokenizer: str = "13a"
    rouge_stemmer: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the reported metrics."""
        return tuple(name for kind in self.chosen for name in _REPORTED[kind])

    @property
    def best(self) -> str | None:
        """The metric that selects checkpoints: the first kind's."""
        return _CHOOSING[self.chosen[0]] if self.chosen else None

    def score(
        self, predictions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> dict[str, Array]:
        """Scores of each row: counts [rows, n] to sum for chrf and bleu, values for rouge."""
        scores: dict[str, Array] = {}
        for kind in self.chosen:
            if kind == "rouge":
                scores |= self._rouge(predictions, references)
            else:
                scores[kind] = _counts(self._metric(kind), predictions, references)
        return scores

    def values(self, scores: Mapping[str, Array]) -> dict[str, float]:
        """The metrics over all rows."""
        return {
            name: float(scores[name].mean())
            if name in ROUGE
            else _of_sums(self._metric(name), scores[name].sum(axis=0))
            for name in self.names
        }

    def interval(self, scores: Mapping[str, Array], name: str) -> tuple[float, float]:
        """A 95 % interval of one metric, by bootstrap over rows with corpus BLEU recomputed."""
        rows = scores[name]
        if name in ROUGE:
            return intervals.ratio_interval(rows, np.ones(len(rows)))
        metric = self._metric(name)
        return intervals.weighted_interval(
            len(rows),
            lambda weights: np.asarray([_of_sums(metric, drawn) for drawn in weights @ rows]),
        )

    def _metric(self, kind: str) -> Metric:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF

        # `force`: no warning where texts look tokenised.
        return CHRF() if kind == "chrf" else BLEU(tokenize=self.bleu_tokenizer, force=True)

    def _rouge(
        self, predictions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> dict[str, Array]:
        from rouge_score.rouge_scorer import RougeScorer
        from rouge_score.tokenizers import DefaultTokenizer

        scorer = RougeScorer(list(ROUGE), tokenizer=DefaultTokenizer(self.rouge_stemmer))
        rows = [
            scorer.score_multi(list(known), text)
            for text, known in zip(predictions, references, strict=True)
        ]
        return {name: np.asarray([100 * row[name].fmeasure for row in rows]) for name in ROUGE}


def _counts(
    metric: Metric, predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> Array:
    """sacreBLEU's counts of each row, [rows, n]; it sums these for corpus scores."""
    most = max(map(len, references))
    # One stream of first references, one of second, ...; None where a row has fewer.
    streams = [[known[i] if i < len(known) else None for known in references] for i in range(most)]
    counts = metric._extract_corpus_statistics(list(predictions), streams)  # type: ignore[arg-type]
    return np.asarray(counts, dtype=np.int64)


def _of_sums(metric: Metric, sums: Array) -> float:
    return float(metric._compute_score_from_stats(sums.tolist()).score)
