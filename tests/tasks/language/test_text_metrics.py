"""Metrics of texts equal those of sacreBLEU and rouge_score called directly."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pytest

from peftlab.tasks.language.text_metrics import ROUGE, TextMetrics
from peftlab.tasks.language.words import Words

sacrebleu = pytest.importorskip("sacrebleu")

ALL = TextMetrics(("chrf", "bleu", "rouge"))

CASES: dict[str, tuple[list[str], list[list[str]]]] = {
    # predictions, references of each row
    "one reference": (
        ["the cat sat on the mat today", "a dog runs home"],
        [["the cat sat on a mat today"], ["the dog runs home now"]],
    ),
    "everything right": (["the cat sat on the mat"], [["the cat sat on the mat"]]),
    "nothing right": (["xyz"], [["the cat sat on the mat"]]),
    "an empty prediction": (["", "the cat sat on the mat"], [["a dog runs"], ["the cat sat"]]),
    "only empty predictions": (["", "  "], [["a dog"], ["a cat"]]),
    "several references": (
        ["the cat sat on the mat", "a dog"],
        [["a cat sat there", "the cat sat on the mat !"], ["the dog", "one dog"]],
    ),
    "another number of references in each row": (
        ["the cat sat on the mat", "a dog runs home", "yes"],
        [["a cat", "the cat sat on the mat", "cats sit"], ["a dog ran home"], ["yes", "no"]],
    ),
    "unicode": (
        ["Vem vill ha en bit tårta?", "我喜欢吃苹果", "Vår skola ligger på kullen 🙂"],
        [["Vem vill ha en tårtbit?"], ["我很喜欢吃苹果"], ["Skolan ligger på kullen 🙂"]],
    ),
    "lines": (
        ["the cat sat\non the mat\n\na dog ran", "one line"],
        [["a dog ran\nthe cat sat on a mat"], ["another line\nand one more"]],
    ),
    "marks and line breaks": (
        ["He said: “no!”\nThen 3,000 left.", "it costs £20-25."],
        [['He said: "no!" Then 3,000 left.'], ["It costs £ 20 - 25 ."]],
    ),
}  # fmt: skip


def streams(references: list[list[str]]) -> list[list[Any]]:
    """References as sacreBLEU takes them: all first ones, all second ones, ..."""
    most = max(map(len, references))
    return [[row[i] if i < len(row) else None for row in references] for i in range(most)]


@pytest.mark.parametrize("case", CASES)
def test_values_equal_those_of_the_libraries(case: str) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    predictions, references = CASES[case]
    result = ALL.values(ALL.score(predictions, references))
    bleu = sacrebleu.corpus_bleu(predictions, streams(references))
    assert result["bleu"] == bleu.score
    assert result["chrf"] == sacrebleu.corpus_chrf(predictions, streams(references)).score
    ascii_only = all(text.isascii() for text in chain(predictions, *references))
    scorer = RougeScorer(list(ROUGE), tokenizer=None if ascii_only else Words())
    for name in ROUGE:
        rows = [
            scorer.score_multi(known, text)[name].fmeasure
            for text, known in zip(predictions, references, strict=True)
        ]
        assert result[name] == pytest.approx(100 * sum(rows) / len(rows))


@pytest.mark.parametrize("tokenizer", ["13a", "intl", "zh", "char", "none"])
def test_bleu_by_each_tokenizer(tokenizer: str) -> None:
    predictions, references = CASES["unicode"]
    measured = TextMetrics(("bleu",), bleu_tokenizer=tokenizer)
    result = measured.values(measured.score(predictions, references))
    direct = sacrebleu.corpus_bleu(predictions, streams(references), tokenize=tokenizer)
    assert result == {"bleu": direct.score}


def test_the_stemmer_is_an_option() -> None:
    predictions, references = ["the dogs were running"], [["the dog was runs"]]
    plain, stems = (TextMetrics(("rouge",), rouge_stemmer=stemmer) for stemmer in (False, True))
    assert (
        plain.values(plain.score(predictions, references))["rouge1"]
        < stems.values(stems.score(predictions, references))["rouge1"]
    )


def test_rows_scored_in_parts_are_one_corpus() -> None:
    predictions = [text for case in CASES.values() for text in case[0]]
    references = [known for case in CASES.values() for known in case[1]]
    whole = ALL.score(predictions, references)
    parts = [
        ALL.score(predictions[at : at + 4], references[at : at + 4])
        for at in range(0, len(predictions), 4)
    ]
    for name, rows in whole.items():
        assert np.array_equal(np.concatenate([part[name] for part in parts]), rows)
    result = ALL.values(whole)
    assert result["bleu"] == sacrebleu.corpus_bleu(predictions, streams(references)).score
    # The mean of the rows' own scores is another number.
    alone = [ALL.values(ALL.score([p], [r]))["bleu"] for p, r in
             zip(predictions, references, strict=True)]  # fmt: skip
    assert abs(np.mean(alone) - result["bleu"]) > 1


@pytest.mark.parametrize("name", ALL.names)
def test_intervals(name: str) -> None:
    predictions = [text for case in CASES.values() for text in case[0]]
    references = [known for case in CASES.values() for known in case[1]]
    scores = ALL.score(predictions, references)
    low, high = ALL.interval(scores, name)
    assert 0 <= low < ALL.values(scores)[name] < high <= 100 + 1e-9
    assert ALL.interval(scores, name) == (low, high)
    right = ALL.score(["the cat sat on the mat"] * 5, [["the cat sat on the mat"]] * 5)
    assert ALL.interval(right, name) == pytest.approx((100, 100))


def test_an_interval_of_corpus_bleu_is_that_of_drawn_corpora() -> None:
    """As sacreBLEU's own bootstrap, whose draws are others."""
    generator = np.random.default_rng(0)
    words = ["the", "a", "cat", "dog", "sat", "ran", "on", "at", "mat", "home", "now"]
    references = [" ".join(generator.choice(words, 9)) for _ in range(120)]
    predictions = [
        " ".join(w if generator.random() < 0.8 else "xx" for w in text.split())
        for text in references
    ]
    measured = TextMetrics(("bleu",))
    low, high = measured.interval(measured.score(predictions, [[r] for r in references]), "bleu")
    direct = sacrebleu.metrics.BLEU().corpus_score(predictions, [references], n_bootstrap=1000)
    assert (high - low) / 2 == pytest.approx(direct._ci, rel=0.15)


def test_what_is_chosen_is_what_is_reported() -> None:
    assert ALL.names == ("chrf", "bleu", *ROUGE)
    assert (ALL.best, TextMetrics(("rouge", "bleu")).best) == ("chrf", "rougeL")
    none = TextMetrics(())
    assert (none.names, none.best, none.values({})) == ((), None, {})
