"""The loss curve as CSV, PNG and SVG."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

_FIRST = ("step", "epoch", "loss", "penalty", "sparsity", "learning_rate", "grad_norm")

# Distinguishable in both colour blindness and grey; readable on white and on black.
_TRAINING, _VALIDATION, _METRIC = "#4C78A8", "#E45756", "#54A24B"


def write_curves(
    history: Sequence[Mapping[str, float]],
    folder: Path,
    *,
    plots: bool = True,
    metric: str = "loss",
    best_step: int | None = None,
    title: str = "",
) -> None:
    """Write `folder`/log.csv and, with `plots`, `folder`/plots/loss.png and loss.svg."""
    write_log(history, folder / "log.csv")
    if plots:
        plot_curves(history, folder / "plots", metric=metric, best_step=best_step, title=title)


def write_log(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Write a run's logged points as CSV: one line per step, `validation_METRIC` columns last."""
    lines: dict[int, dict[str, float]] = {}
    for entry in history:
        line = lines.setdefault(int(entry["step"]), {})
        line.update({_column(name): value for name, value in entry.items()})
    names = {name for line in lines.values() for name in line}
    columns = [*(name for name in _FIRST if name in names), *sorted(names - set(_FIRST))]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        for step in sorted(lines):
            writer.writerow(lines[step] | {"step": step})


def plot_curves(
    history: Sequence[Mapping[str, float]],
    folder: Path,
    *,
    metric: str = "loss",
    best_step: int | None = None,
    title: str = "",
) -> list[Path]:
    """Draw training and validation loss over steps, and `metric` where it is another.

    Writes `loss.png` and `loss.svg` into `folder`, which is created, and returns their paths; draws
    nothing where nothing was logged.
    """
    training = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    validation = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    chosen = [
        (entry["step"], entry[f"eval_{metric}"])
        for entry in history
        if metric != "loss" and f"eval_{metric}" in entry
    ]
    if not training and not validation:
        return []
    # Figure without pyplot: no window system, no global state that threads could share.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(xlabel="optimizer step", ylabel="loss", title=title)
    for points, label, colour, marker in (
        (training, "training loss", _TRAINING, None),
        (validation, "validation loss", _VALIDATION, "o"),
    ):
        if points:
            axes.plot(*zip(*points, strict=True), label=label, color=colour, marker=marker)
    handles, labels = axes.get_legend_handles_labels()
    if chosen:
        other = axes.twinx()
        name = f"validation {metric.replace('_', ' ')}"
        other.set_ylabel(name)
        other.plot(*zip(*chosen, strict=True), label=name, color=_METRIC, marker="s")
        more, names = other.get_legend_handles_labels()
        handles, labels = handles + more, labels + names
        other.spines.top.set_visible(False)
    if best_step is not None:
        line = axes.axvline(best_step, color="grey", linestyle=":", linewidth=1)
        handles, labels = [*handles, line], [*labels, f"kept: step {best_step}"]
    axes.grid(alpha=0.25)
    axes.spines.top.set_visible(False)
    axes.legend(handles, labels, frameon=False)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "loss.png", folder / "loss.svg"]
    # A fixed hash salt and no date: the same run draws the same bytes.
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "peftlab"}):
        figure.savefig(paths[0], dpi=150)
        figure.savefig(paths[1], metadata={"Date": None})
    return paths


def _column(name: str) -> str:
    return f"validation_{name.removeprefix('eval_')}" if name.startswith("eval_") else name
