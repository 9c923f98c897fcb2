"""Multi-label and regression: losses, metrics and intervals against other definitions."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, mean_squared_error, r2_score
from sklearn.utils.class_weight import compute_class_weight

from peftlab.config import config_from_mapping
from peftlab.data.loading import load_splits
from peftlab.data.splits import Splits
from peftlab.errors import ConfigError, DataError
from peftlab.tasks.class_weights import class_weights, positive_weights
from peftlab.tasks.classification.label_problems import (
    LabelProblem,
    Regression,
    SingleLabel,
)
from peftlab.tasks.classification.multi_label import MultiLabel
from peftlab.tasks.classification.text_classification import TextClassification
from peftlab.tasks.statistics.correlation import pearson, r2, ranks

stats = pytest.importorskip("scipy.stats")

NAMES = ("a", "b", "c")


def splits_of(folder: Path, *rows: dict[str, Any], **options: Any) -> tuple[Splits, Any]:
    made = TextClassification.options(name="text-classification", **options)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = load_splits(
        str(folder), formats=made.formats, roles=made.roles, label_kind=made.label_kind,
        validation=0,
    )  # fmt: skip
    return splits, made


def several(label: list[list[int]], prediction: list[list[int]]) -> dict[str, Any]:
    return {
        "label": np.asarray(label, dtype=float),
        "prediction": np.asarray(prediction),
        "loss": np.zeros(len(label)),
    }


EDGES = {
    "nothing said": ([[1, 0, 1], [0, 1, 0]], [[0, 0, 0], [0, 0, 0]]),
    "nothing there": ([[0, 0, 0], [0, 0, 0]], [[0, 1, 0], [0, 0, 0]]),
    "nothing at all": ([[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]),
    "all right": ([[1, 1, 1], [0, 1, 0]], [[1, 1, 1], [0, 1, 0]]),
    "a label that never occurs": ([[1, 0, 0], [0, 1, 0]], [[1, 0, 0], [1, 1, 0]]),
    "one row": ([[1, 0, 1]], [[1, 1, 0]]),
}


@pytest.mark.parametrize("case", EDGES)
def test_metrics_of_several_labels_are_scikit_learns(case: str) -> None:
    scores = several(*EDGES[case])
    label, prediction = scores["label"].astype(int), scores["prediction"]
    result = MultiLabel(NAMES).metrics(scores)
    for average in ("micro", "macro"):
        expected = f1_score(label, prediction, average=average, zero_division=0)
        assert result[f"f1_{average}"] == pytest.approx(expected)
    assert result["subset_accuracy"] == accuracy_score(label, prediction)
    for metric in MultiLabel.metric_names.keys() - {"loss"}:
        low, high = MultiLabel(NAMES).interval(scores, metric)
        assert 0 <= low <= high <= 1


def test_a_single_column_of_labels() -> None:
    scores = several([[1], [0], [1]], [[1], [1], [0]])
    assert MultiLabel(("a",)).metrics(scores)["f1_micro"] == pytest.approx(0.5)


def test_intervals_hold_the_metric() -> None:
    generator = np.random.default_rng(0)
    label = generator.integers(2, size=(400, 3))
    flipped = np.where(generator.random((400, 3)) < 0.2, 1 - label, label)
    scores = several(label.tolist(), flipped.tolist())
    numbers = generator.normal(size=400)
    guesses = numbers + generator.normal(size=400)
    regression = {"label": numbers, "prediction": guesses, "loss": (numbers - guesses) ** 2}
    for problem, result in ((MultiLabel(NAMES), scores), (Regression(), regression)):
        point = problem.metrics(result)
        for metric in problem.metric_names.keys() - {"loss"}:
            low, high = problem.interval(result, metric)
            assert low < point[metric] < high, metric
            assert high - low < 0.6 * max(1, point[metric])


@pytest.mark.parametrize(
    ("truth", "guess"),
    [
        ([1.0, 2.0, 3.0, 4.0], [1.1, 1.9, 3.5, 3.6]),
        ([1.0, 1.0, 2.0, 2.0, 5.0], [0.0, 3.0, 3.0, 1.0, 1.0]),
        ([1e6, 1e6 + 1, 1e6 + 2], [3.0, 2.0, 4.0]),
        ([5.0, -5.0], [-1.0, 1.0]),
    ],
)
def test_correlations_are_scipys(truth: list[float], guess: list[float]) -> None:
    x, y = np.asarray(guess), np.asarray(truth)
    scores = {"label": y, "prediction": x, "loss": (x - y) ** 2}
    result = Regression().metrics(scores)
    assert result["pearson"] == pytest.approx(stats.pearsonr(x, y)[0])
    assert result["spearman"] == pytest.approx(stats.spearmanr(x, y)[0])
    assert result["r2"] == pytest.approx(r2_score(y, x))
    assert result["mse"] == pytest.approx(mean_squared_error(y, x))
    np.testing.assert_array_equal(ranks(y), stats.rankdata(y))


def test_constant_values_have_no_correlation() -> None:
    flat, varied = np.full(4, 0.1), np.arange(4.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pearson(flat, varied) == pearson(varied, flat) == 0
        assert r2(varied, flat) == 0
        scores = {"label": varied, "prediction": flat, "loss": varied}
        assert np.isfinite(list(Regression().metrics(scores).values())).all()
        for metric in ("pearson", "spearman", "r2", "mse"):
            assert np.isfinite(Regression().interval(scores, metric)).all()


def test_weighted_rows_are_repeated_rows() -> None:
    x, y = np.array([1.0, 2.0, 4.0, 3.0]), np.array([2.0, 1.0, 3.0, 5.0])
    times = np.array([2, 0, 1, 3])
    again = np.repeat(x, times), np.repeat(y, times)
    assert pearson(x, y, times[None])[0] == pytest.approx(float(pearson(*again)))
    assert r2(x, y, times[None])[0] == pytest.approx(float(r2(*again)))


@pytest.mark.parametrize(
    ("problem", "labels", "kind"),
    [
        (SingleLabel(NAMES), torch.tensor([0, 2]), "single_label_classification"),
        (MultiLabel(NAMES), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]),
         "multi_label_classification"),
        (Regression(), torch.tensor([0.5, -2.0]), "regression"),
    ],
)  # fmt: skip
def test_losses_are_those_of_transformers(
    problem: LabelProblem, labels: torch.Tensor, kind: str
) -> None:
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, **problem.head_config(),
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).eval()
    assert model.config.problem_type == kind
    batch = {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]]), "labels": labels}
    task = TextClassification(problem)
    expected = model(**batch).loss * 2
    torch.testing.assert_close(task.loss_sum(model, batch), expected)
    scores = task.score(model, batch)
    assert scores["loss"].sum() == pytest.approx(float(expected.detach()), rel=1e-5)
    assert set(task.metrics(scores)) == set(task.greater_is_better)
    assert task.best_metric in task.greater_is_better
    for row in model(batch["input_ids"]).logits:
        answer = problem.answer(row.float())
        assert json.loads(json.dumps(answer)) == answer
        assert task.answer_text(answer)


def test_weights_are_scikit_learns() -> None:
    labels = np.array([0] * 7 + [1] * 2 + [2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    result = class_weights("balanced", NAMES, np.bincount(labels))
    assert result is not None
    np.testing.assert_allclose(result, expected)
    assert np.mean([result[label] for label in labels]) == pytest.approx(1)
    assert class_weights("balanced", NAMES, np.array([3, 0, 1])) == pytest.approx((2 / 3, 1, 2))
    assert class_weights({"b": 2}, NAMES, np.bincount(labels)) == (1.0, 2.0, 1.0)
    assert class_weights(None, NAMES, np.bincount(labels)) is None
    assert positive_weights("balanced", NAMES, np.array([1, 4, 0]), 4) == (3.0, 1.0, 1.0)
    with pytest.raises(
        ConfigError, match=r"'bb', which is not a label; did you mean b\? labels are"
    ):
        class_weights({"bb": 1.0}, NAMES, np.bincount(labels))


def test_a_weighted_loss_is_the_sum_over_weighted_rows() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 1, 2, 0])
    plain, weighted = SingleLabel(NAMES), SingleLabel(NAMES, (1.0, 3.0, 0.5))
    each = plain.losses(logits, labels, weighted=True)
    expected = each * torch.tensor([1.0, 3.0, 3.0, 0.5, 1.0])
    torch.testing.assert_close(weighted.losses(logits, labels, weighted=True), expected)
    torch.testing.assert_close(weighted.losses(logits, labels, weighted=False), each)
    both = torch.tensor([[1.0, 0.0, 1.0]])
    own = MultiLabel(NAMES, (2.0, 5.0, 1.0)).losses(logits[:1], both, weighted=True)
    p = logits[0].double().sigmoid()
    by_hand = -(2 * p[0].log() + (1 - p[1]).log() + p[2].log()) / 3
    torch.testing.assert_close(own[0].double(), by_hand, rtol=1e-5, atol=1e-6)


def test_problems_follow_the_data(tmp_path: Path) -> None:
    rows = [{"text": "x", "label": ["a", "b"]}, {"text": "y", "label": []},
            {"text": "z", "label": ["b", "b"]}]  # fmt: skip
    splits, options = splits_of(tmp_path, *rows, class_weights="balanced")
    task = TextClassification.from_splits(splits, options)
    assert task.problem == MultiLabel(("a", "b"), (2.0, 0.5))
    assert [task.problem.target(label) for label in splits.train["label"]] == [
        [1.0, 1.0], [0.0, 0.0], [0.0, 1.0]
    ]  # fmt: skip
    again = TextClassification.from_state(json.loads(json.dumps(task.state())))
    assert again.problem == MultiLabel(("a", "b"))
    old = TextClassification.from_state({"label_names": ["n", "p"], "pairs": False})
    assert old.problem == SingleLabel(("n", "p"))
    numbers = [{"text": "x", "score": 1}, {"text": "y", "score": 2.5}]
    splits, options = splits_of(tmp_path, *numbers, problem="regression")
    task = TextClassification.from_splits(splits, options)
    assert task.problem == Regression()
    assert task.state() == {"problem": "regression", "label_names": [], "pairs": False}


def test_untuned_answers_alike(tmp_path: Path) -> None:
    rows = [{"text": "x", "label": ["a"]}, {"text": "y", "label": ["a", "b"]},
            {"text": "z", "label": ["a"]}, {"text": "w", "label": []}]  # fmt: skip
    splits, options = splits_of(tmp_path, *rows)
    task = TextClassification.from_splits(splits, options)
    scores = task.problem.untuned(splits.train, splits.train)
    assert scores["prediction"].tolist() == [[1, 0]] * 4
    shares = np.array([0.75, 0.25])
    expected = -(shares * np.log(shares) + (1 - shares) * np.log(1 - shares)).mean()
    assert task.metrics(scores)["loss"] == pytest.approx(expected)
    regression = Regression().untuned(*[_rows([1.0, 3.0])] * 2)
    assert regression["prediction"].tolist() == [2.0, 2.0]
    assert Regression().metrics(regression)["r2"] == pytest.approx(0)


def _rows(labels: list[float]) -> Any:
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_dict({"label": labels})


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="label 'd' is unknown"):
        MultiLabel(NAMES).target(["a", "d"])
    rows = [{"text": "x", "label": 0.5}, {"text": "y", "label": "big"}]
    with pytest.raises(DataError, match=r"decimal point .*set task\.problem=regression"):
        splits_of(tmp_path, *rows)
    with pytest.raises(DataError, match=r"train.jsonl:1.*holds lists, not one label a row"):
        splits_of(tmp_path, {"text": "x", "label": ["a", "b"]}, problem="single_label")
    mapping = {"model": {"name": "m"}, "data": {"source": "d"}, "method": "head"}
    task = {"name": "text-classification", "problem": "regression", "class_weights": "balanced"}
    with pytest.raises(ConfigError, match=r"task\.class_weights weighs classes"):
        config_from_mapping({**mapping, "task": task})
    with pytest.raises(ConfigError, match=r"did you mean task\.class_weights\?"):
        config_from_mapping({**mapping, "task": {"name": "text-classification", "class_weight": 1}})
    with pytest.raises(ConfigError, match="is read by task text-classification, not by causal-lm"):
        config_from_mapping({**mapping, "task": {"name": "causal-lm", "problem": "regression"}})
