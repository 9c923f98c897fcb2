"""Writes the results of a bench: JSON for programs, Markdown for notes, an HTML page for people."""

from __future__ import annotations

import json
from pathlib import Path

from peftlab.bench.report.page import render_page
from peftlab.bench.report.quantities import (
    ABSENT,
    averaged,
    failed_seeds,
    findings,
    format_bytes,
    format_quality,
    format_rate,
    format_seconds,
    format_share,
    mean,
    metric_name,
)
from peftlab.bench.results import MEMORY_PARTS, BenchResult, Row

RESULTS = "results.json"


def write_reports(result: BenchResult, folder: Path) -> Path:
    """Write results.json, results.md and report.html into `folder`; return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result.to_json(), indent=1) + "\n"
    (folder / RESULTS).write_text(text, encoding="utf-8")
    (folder / "results.md").write_text(markdown(result), encoding="utf-8")
    page = folder / "report.html"
    page.write_text(render_page(result), encoding="utf-8")
    return page


def _heads(result: BenchResult) -> tuple[str, ...]:
    return (
        "method",
        metric_name(result.metric) or "quality",
        "trained",
        "peak memory",
        "tokens/s",
        "time",
        "artifact",
    )


def _cells(row: Row, result: BenchResult) -> tuple[str, ...]:
    return (
        row.label,
        format_quality(row, result.metric),
        format_share(row.trained_share()),
        format_bytes(mean(row.memory())),
        format_rate(mean(row.spread(lambda run: run.tokens_per_second))),
        format_seconds(mean(row.spread(lambda run: run.seconds))),
        format_bytes(mean(row.spread(lambda run: run.artifact_bytes))),
    )


def text_table(result: BenchResult) -> str:
    """The rows as aligned plain text, for a terminal; failed rows carry their reason."""
    heads = _heads(result)
    cells_of_rows = [_cells(row, result) if row.failure is None else None for row in result.rows]
    whole = [heads, *(cells for cells in cells_of_rows if cells is not None)]
    widths = [max(len(line[i]) for line in whole) for i in range(len(heads))]

    def aligned(cells: tuple[str, ...]) -> str:
        return "  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip()

    text = [aligned(heads), "  ".join("-" * width for width in widths)]
    for row, cells in zip(result.rows, cells_of_rows, strict=True):
        if cells is None:
            text.append(f"{row.label.ljust(widths[0])}  failed: {row.failure}")
        else:
            text.append(aligned(cells) + failed_seeds(row))
    return "\n".join(text)


def markdown(result: BenchResult) -> str:
    """A table with the settings and the parts of the memory, and what it says in sentences."""
    heads = (*_heads(result), f"memory: {', '.join(MEMORY_PARTS)}", "settings")
    lines = [
        f"# {result.model} on {result.data}",
        "",
        *(f"{sentence}" for sentence in findings(result)),
        "",
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
    ]
    for row in result.rows:
        if row.failure is None:
            parts = [format_bytes(mean(row.memory(part))) for part in MEMORY_PARTS]
            memory = ABSENT if row.memory() is None else ", ".join(parts)
            cells = (*_cells(row, result), memory, row.settings + failed_seeds(row))
        else:
            cells = (row.label, f"failed: {row.failure}", *[""] * (len(heads) - 2))
        lines.append("| " + " | ".join(_escape(cell) for cell in cells) + " |")
    seeds = f", {words}" if (words := averaged(result)) else ""
    lines += [
        "",
        f"Quality on {result.split} with its 95 % interval{seeds}; peak memory above what was "
        "there before the run; time and tokens/s of training alone.",
        "",
    ]
    return "\n".join(lines)


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")
