"""Labels by the thousand: nothing grows with rows times labels times labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

from peftlab.cli.screen import Screen
from peftlab.cli.texts import show_data
from peftlab.data.loading import load_splits
from peftlab.data.splitting import split_fraction
from peftlab.tasks.classification.label_problems import SingleLabel
from peftlab.tasks.classification.multi_label import MultiLabel
from peftlab.tasks.statistics import intervals

torch = pytest.importorskip("torch")

COUNT = 5000
NAMES = tuple(f"label_{n}" for n in range(COUNT))
READS: dict[str, Any] = {
    "formats": ("pair", "text-label"), "roles": ("text", "text_pair", "label"),
    "label_kind": "auto",
}  # fmt: skip


def test_five_thousand_classes_are_read_and_named_briefly(tmp_path: Path) -> None:
    rows = "".join(f"t{i},label_{i % COUNT}\n" for i in range(2 * COUNT))
    (tmp_path / "train.csv").write_text("text,label\n" + rows)
    splits = load_splits(str(tmp_path), **READS)
    assert splits.label_names == NAMES
    assert len(splits.understood) < 300
    assert "4,994 others" in splits.understood


def test_five_thousand_labels_a_row_are_read(tmp_path: Path) -> None:
    rows = "".join(f't{i},"label_{i}, label_{(7 * i + 1) % COUNT}"\n' for i in range(COUNT))
    rows += "".join(f"s{i},label_{i}\n" for i in range(COUNT))
    (tmp_path / "train.csv").write_text("text,label\n" + rows)
    splits = load_splits(str(tmp_path), **READS, validation=0)
    assert (splits.label_kind, splits.label_names) == ("many", NAMES)
    assert splits.train[1]["label"] == ["label_1", "label_8"]
    problem = MultiLabel(NAMES)
    targets = problem.targets(splits.train["label"])
    assert sum(map(len, targets)) < 3 * len(targets)
    batch = problem.collated(targets[:4])
    assert batch.shape == (4, COUNT)
    assert batch.sum(dim=1).tolist() == [2, 2, 2, 2]
    assert problem.shown(targets[1]) == ["label_1", "label_8"]
    scores = problem.untuned(splits.train, splits.train.select(range(50)))
    assert (scores["label"].shape, scores["label"].dtype) == ((50, COUNT), np.int8)


def test_metrics_of_many_classes_are_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    label = generator.integers(COUNT, size=4000)
    prediction = np.where(generator.random(4000) < 0.6, label, generator.integers(COUNT, size=4000))
    scores = {"label": label, "prediction": prediction, "loss": np.zeros(4000)}
    problem = SingleLabel(NAMES)
    result = problem.metrics(scores)
    low, high = problem.interval(scores, "f1_macro")
    assert 0 < low < high < 1
    counts = intervals.confusion_counts(label, prediction, COUNT)
    assert intervals.f1_macro(*counts)[0] == pytest.approx(result["f1_macro"])


def test_a_sparse_target_means_what_a_dense_one_does() -> None:
    few, many = MultiLabel(NAMES[:3]), MultiLabel(NAMES[:300])
    label = ["label_2", "label_0"]
    assert few.target(label) == [1.0, 0.0, 1.0]
    assert many.target(label) == [0, 2]
    assert many.collated([[0, 2], []])[:, :3].tolist() == [few.target(label), [0.0, 0.0, 0.0]]
    assert few.collated([few.target(label)]) is None
    label_rows = np.zeros((6, 300), dtype=np.int8)
    label_rows[np.arange(6), np.arange(6)] = 1
    prediction = label_rows.copy()
    prediction[0] = 0
    scores = {"label": label_rows, "prediction": prediction, "loss": np.zeros(6)}
    expected = f1_score(label_rows, prediction, average="macro", zero_division=0)
    assert many.metrics(scores)["f1_macro"] == pytest.approx(expected)
    low, high = many.interval(scores, "f1_macro")
    assert low <= expected <= high


def test_a_stratified_share_of_many_classes() -> None:
    labels = [f"l{i % COUNT}" for i in range(4 * COUNT)]
    train, validation = split_fraction(len(labels), 0.25, seed=1, labels=labels)
    assert sorted(labels[i] for i in validation) == sorted(set(labels))
    assert len(train) == 3 * COUNT


def test_a_table_of_many_labels_ends(capsys: pytest.CaptureFixture[str]) -> None:
    preview = {
        "source": "d", "max_length": 8, "splits": {}, "samples": [], "understood": "",
        "labels": dict.fromkeys(NAMES, 3) | {"label_7": 9},
    }  # fmt: skip
    show_data(Screen(), preview)
    shown = capsys.readouterr().out
    assert "4,960 others" in shown
    assert "label_7 " in shown
    assert shown.count("\n") < 60
