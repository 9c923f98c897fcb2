"""The loss curve as numbers and as pictures."""

from __future__ import annotations

import csv
from pathlib import Path

from peftlab.training.curves import plot_curves, write_curves

HISTORY = (
    {"step": 2, "epoch": 0.5, "loss": 1.5, "learning_rate": 0.1, "grad_norm": 3.0},
    {"step": 4, "epoch": 1.0, "loss": 1.0, "learning_rate": 0.05, "grad_norm": 2.0},
    {"step": 4, "epoch": 1.0, "eval_accuracy": 0.75, "eval_loss": 1.1},
)


def test_files(tmp_path: Path) -> None:
    write_curves(HISTORY, tmp_path, metric="accuracy", best_step=4, title="a < b")
    with (tmp_path / "log.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert lines == [
        {"step": "2", "epoch": "0.5", "loss": "1.5", "learning_rate": "0.1", "grad_norm": "3.0",
         "validation_accuracy": "", "validation_loss": ""},
        {"step": "4", "epoch": "1.0", "loss": "1.0", "learning_rate": "0.05", "grad_norm": "2.0",
         "validation_accuracy": "0.75", "validation_loss": "1.1"},
    ]  # fmt: skip
    assert (tmp_path / "plots" / "loss.png").read_bytes().startswith(b"\x89PNG")
    drawn = (tmp_path / "plots" / "loss.svg").read_text()
    assert drawn.lstrip().startswith("<?xml")
    again = tmp_path / "again"
    plot_curves(HISTORY, again, metric="accuracy", best_step=4, title="a < b")
    assert (again / "loss.svg").read_text() == drawn


def test_no_plots_no_folder(tmp_path: Path) -> None:
    write_curves(HISTORY, tmp_path, plots=False)
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]
    assert plot_curves((), tmp_path / "plots") == []
