"""Against hand-made cases of the definition; each expected value is worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from peftlab.tasks.answering import squad_metrics
from peftlab.tasks.answering.answer_spans import Ranked, best_spans

CASES = {
    # prediction, true answers, exact, f1
    "the same": ("Norman", ["Norman"], 1, 1),
    "case, article, punctuation": ("the  Normans.", ["Normans"], 1, 1),
    "no answer, rightly": ("", [], 1, 1),
    "an answer where there is none": ("Rollo", [], 0, 0),
    "no answer where there is one": ("", ["Rollo"], 0, 0),
    "the best of several": ("10th century", ["in the 10th century", "10th century"], 1, 1),
    "in part": ("the first half of the 10th century", ["10th century"], 0, 2 * 2 / (5 + 2)),
    "words count as often as they stand": ("a b b", ["b b b"], 0, 2 * 2 / (2 + 3)),
    "nothing in common": ("Paris", ["Rouen"], 0, 0),
    "an article alone is no answer": ("", ["the"], 1, 1),
    "punctuation alone too": ("...", ["!"], 1, 1),
    "an article within a word stays": ("theatre", ["atre"], 0, 0),
    "other alphabets": ("Москва", ["москва"], 1, 1),
    "only ASCII punctuation goes": ("«Rouen»", ["Rouen"], 0, 0),
    "accents stay": ("Orléans", ["Orleans"], 0, 0),
    "hyphens join": ("ninety-nine", ["ninetynine"], 1, 1),
}


@pytest.mark.parametrize("case", CASES)
def test_answers_are_judged_as_defined(case: str) -> None:
    prediction, true, exact, f1 = CASES[case]
    assert squad_metrics.exact(prediction, true) == exact
    assert squad_metrics.f1(prediction, true) == pytest.approx(f1)


def test_parts_are_means_of_their_kind() -> None:
    exacts, f1s = np.asarray([1.0, 0, 1]), np.asarray([1.0, 0.5, 1])
    result = squad_metrics.metrics(exacts, f1s, np.asarray([True, True, False]))
    assert result == {
        "exact": pytest.approx(2 / 3), "f1": pytest.approx(2.5 / 3), "has_answer_exact": 0.5,
        "has_answer_f1": 0.75, "no_answer_exact": 1, "no_answer_f1": 1,
    }  # fmt: skip
    assert "no_answer_f1" not in squad_metrics.metrics(exacts, f1s, np.asarray([True] * 3))


def test_the_best_threshold_is_found() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        leads = generator.normal(size=9).round(1)  # with equal ones
        answered, none = generator.random(9), (generator.random(9) < 0.5).astype(float)

        def mean(at: float, leads=leads, answered=answered, none=none) -> float:  # type: ignore[no-untyped-def]
            return float(np.where(leads > at, none, answered).mean())

        result = squad_metrics.best_threshold(leads, answered, none)
        tried = [mean(at) for at in [*leads.tolist(), leads.min() - 1, 0.0]]
        assert mean(result) == pytest.approx(max(tried))
    never = np.full(3, np.inf)
    assert squad_metrics.best_threshold(never, np.zeros(3), np.ones(3)) == 0


def test_spans_lie_within_the_context() -> None:
    """Of [CLS] q [SEP] c c c [SEP], whatever the logits say of the others."""
    characters = [(0, 0), (0, 0), (0, 0), (0, 2), (2, 5), (5, 9), (0, 0)]
    starts = np.asarray([9.0, 9, 9, 1, 3, 0, 9])
    ends = np.asarray([9.0, 9, 9, 0, 2, 1, 9])
    whole = best_spans(starts, ends, characters, [True] * 7, n_best=20, longest=30)
    assert whole[0] == (5.0, 2, 5)
    assert len(whole) == 6  # every start with every end that is not before it
    assert [score for score, _, _ in whole] == sorted((s for s, _, _ in whole), reverse=True)
    short = best_spans(starts, ends, characters, [True] * 7, n_best=20, longest=1)
    assert {(a, b) for _, a, b in short} == {(0, 2), (2, 5), (5, 9)}
    owned = best_spans(starts, ends, characters, [False] * 5 + [True] * 2, n_best=2, longest=9)
    assert owned == [(1.0, 5, 9)]
    assert best_spans(starts, ends, [(0, 0)] * 7, [True] * 7, n_best=3, longest=3) == []


def test_best_spans_are_those_of_a_plain_search() -> None:
    generator = np.random.default_rng(1)
    starts, ends = generator.normal(size=(2, 30))
    characters = [(0, 0)] * 4 + [(i, i + 1) for i in range(25)] + [(0, 0)]
    plain = sorted(
        (
            (starts[i] + ends[j], i - 4, j - 3)
            for i in range(4, 29)
            for j in range(i, min(i + 6, 29))
        ),
        reverse=True,
    )[:10]
    result = best_spans(starts, ends, characters, [True] * 30, n_best=10, longest=6)
    assert [span[1:] for span in result] == [span[1:] for span in plain]


def test_windows_join() -> None:
    context = "  Rollo came."
    ranked = Ranked.of(
        context, [[(2.0, 0, 7), (1.0, 7, 12)], [(3.0, 2, 7)], []], [0.5, -1.0, 4.0], n_best=5
    )
    assert ranked.candidates == ((3.0, 2, 7), (1.0, 8, 12))
    assert (ranked.null, ranked.text, ranked.lead) == (-1.0, "Rollo", -4.0)
    answer = ranked.answer(0.0)
    assert (answer["answer"], answer["start"], answer["end"]) == ("Rollo", 2, 7)
    assert answer["no_answer"] + sum(a["score"] for a in answer["n_best"]) == pytest.approx(1)
    none = ranked.answer(-5.0)
    assert (none["answer"], none["start"], none["score"]) == ("", None, none["no_answer"])
    assert Ranked.of("x", [[]], [0.0], n_best=5).answer(10.0)["answer"] == ""
