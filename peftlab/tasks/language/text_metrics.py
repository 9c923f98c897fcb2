"""Metrics of generated texts: chrF and BLEU by sacreBLEU, ROUGE by rouge_score over our words.

Each row yields numbers whose sums (chrF, BLEU) or mean (ROUGE) over a split give the metric, so
that rows can be scored in batches and resampled for an interval. All range from 0 to 100.

Sources: M. Popovic, chrF: character n-gram F-score for automatic MT evaluation, WMT 2015; K.
Papineni et al., BLEU: a method for automatic evaluation of machine translation, ACL 2002; M. Post,
A call for clarity in reporting BLEU scores, WMT 2018; C.-Y. Lin, ROUGE: a package for automatic
evaluation of summaries, Text Summarization Branches Out, 2004.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from peftlab.tasks.language.words import Words, bleu_tokenizer_for
from peftlab.tasks.statistics import intervals

if TYPE_CHECKING:
    import datasets
    from sacrebleu.metrics.base import Metric

    from peftlab.config.tasks.seq2seq import Seq2SeqOptions

logger = logging.getLogger("peftlab")

_ROWS_FOR_SCRIPTS = 5000
"""Rows of train, about, whose references say in which scripts the targets are written."""

Array = np.ndarray[Any, Any]

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_REPORTED: Mapping[str, tuple[str, ...]] = {"chrf": ("chrf",), "bleu": ("bleu",), "rouge": ROUGE}
_CHOOSING: Mapping[str, str] = {"chrf": "chrf", "bleu": "bleu", "rouge": "rougeL"}


@dataclass(frozen=True, slots=True)
class TextMetrics:
    """The metrics `chosen`, of chrf, bleu and rouge.

    BLEU sums over the corpus and takes the reference nearest in length; chrF and ROUGE take the
    best reference of each row. ROUGE compares words of any script (`tasks.language.words`);
    rougeLsum takes each line of a text as a sentence.
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

        words = Words(self.rouge_stemmer)
        of_lines = RougeScorer(list(ROUGE), tokenizer=words)
        # Of texts of one line, rougeLsum is rougeL, and both take the square of a text's length.
        of_line = RougeScorer([name for name in ROUGE if name != "rougeLsum"], tokenizer=words)
        rows = []
        for text, known in zip(predictions, references, strict=True):
            lines = any("\n" in each for each in (text, *known))
            row = (of_lines if lines else of_line).score_multi(list(known), text)
            rows.append(row if lines else row | {"rougeLsum": row["rougeL"]})
        return {name: np.asarray([100 * row[name].fmeasure for row in rows]) for name in ROUGE}

    def signature(self, references: Sequence[Sequence[str]]) -> str | None:
        """sacreBLEU's signature of BLEU over such references; None where BLEU is not measured."""
        if "bleu" not in self.chosen:
            return None
        metric: Any = self._metric("bleu")
        counts = {len(known) for known in references}
        metric.num_refs = counts.pop() if len(counts) == 1 else -1
        return str(metric.get_signature())


def text_metrics(
    train: datasets.Dataset, options: Seq2SeqOptions
) -> tuple[TextMetrics, str | None]:
    """The metrics that the options choose, and BLEU's signature, which is logged.

    `bleu_tokenizer: auto` is chosen here, by the references of `train`.
    """
    chosen, cut = tuple(options.text_metrics), options.bleu_tokenizer
    if "bleu" not in chosen:
        return TextMetrics(chosen, "13a" if cut == "auto" else cut, options.rouge_stemmer), None
    column = "references" if "references" in train.column_names else "completion"
    # Spread over all rows: files are often sorted.
    seen = train.select_columns(column)[:: max(1, len(train) // _ROWS_FOR_SCRIPTS)][column]
    references = [[row] if isinstance(row, str) else row for row in seen]
    if cut == "auto":
        cut = bleu_tokenizer_for(text for row in references for text in row)
    metrics = TextMetrics(chosen, cut, options.rouge_stemmer)
    signature = metrics.signature(references)
    logger.info("BLEU is sacreBLEU's %s", signature)
    return metrics, signature


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
