"""The HTML report: one file that needs nothing else, for light and dark, phone and desk."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import PurePath
from typing import Any

from peftlab.bench.report import charts
from peftlab.bench.report.quantities import (
    ABSENT,
    averaged,
    failed_seeds,
    findings,
    format_bytes,
    format_count,
    format_metric,
    format_quality,
    format_rate,
    format_seconds,
    format_share,
    mean,
    metric_name,
)
from peftlab.bench.results import MEMORY_PARTS, BenchResult, Row

NOTES = (
    "Every row ran in a fresh process. Quality is measured once, on the split named above, with "
    "the weights that did best on validation; brackets hold its 95 % interval over the rows of "
    "that split, ± the standard deviation over seeds.",
    "Peak memory is anonymous memory minus what it was before the run on a CPU, the allocator's "
    "peak on a GPU. Weights, gradients and optimizer are the sizes of those tensors; activations "
    "are the rest.",
    "Tokens a second and seconds are of training alone, without loading and evaluation. The "
    "artifact is what the method saves: the adapter, or the trained part.",
)


def render_page(result: BenchResult) -> str:
    """The whole document."""
    title = f"{PurePath(result.model).name} on {PurePath(result.data).name}"
    css = files("peftlab.bench.report").joinpath("report.css").read_text(encoding="utf-8")
    body = [
        f"<h1>{escape(title)}: methods side by side</h1>",
        f'<p class="sub">{escape(_subtitle(result))}</p>',
        f'<p class="findings">{escape(" ".join(findings(result)))}</p>',
        _tiles(result),
        "<h2>Results</h2>",
        _table(result),
        *_plots(result),
        "<h2>How this was measured</h2>",
        *(f'<p class="notes">{escape(note)}</p>' for note in NOTES),
        _details(
            "Settings of every row", {r.label: dict(r.config) for r in result.rows if r.config}
        ),
        _details("Environment", result.environment),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}: methods side by side</title>\n<style>\n{css}</style>\n</head>\n"
        "<body>\n<main>\n" + "\n".join(body) + "\n</main>\n</body>\n</html>\n"
    )


def _subtitle(result: BenchResult) -> str:
    parts = [result.task.replace("-", " ")]
    if words := averaged(result):
        parts.append(words)
    if device := _device(result.environment):
        parts.append(device)
    parts.append(f"{format_seconds(result.seconds)} in all")
    text = ", ".join(parts)
    return text if result.complete else f"{text} (stopped before the end)"


def _device(environment: Mapping[str, Any]) -> str:
    """What the runs computed on, in words."""
    if devices := environment.get("devices"):
        return str(devices[0].get("name", ""))
    cpu = environment.get("cpu") or {}
    known = [str(cpu[key]) for key in ("model", "arithmetic") if cpu.get(key)]
    if cpu.get("threads"):
        known.append(f"{cpu['threads']} thread{'s' if cpu['threads'] != 1 else ''}")
    return ", ".join(known)


def _tiles(result: BenchResult) -> str:
    """The best of each column, with whose it is."""
    best = result.best()
    if best is None:
        return ""
    tiles = [
        (
            f"{metric_name(result.metric).capitalize()}, best on {result.chosen_on}",
            format_metric(mean(best.metric(result.metric))),
            best,
        )
    ]
    measures: tuple[
        tuple[str, Callable[[Row], float | None], Callable[[float | None], str], bool], ...
    ] = (
        ("Least peak memory", lambda r: mean(r.memory()), format_bytes, False),
        (
            "Most tokens a second",
            lambda r: mean(r.spread(lambda s: s.tokens_per_second)),
            format_rate,
            True,
        ),
        (
            "Smallest artifact",
            lambda r: mean(r.spread(lambda s: s.artifact_bytes)),
            format_bytes,
            False,
        ),
    )
    for name, value, show, most in measures:
        values = [(v, row) for row in result.trained if (v := value(row)) is not None]
        if values:
            top = (max if most else min)(values, key=lambda pair: pair[0])
            tiles.append((name, show(top[0]), top[1]))
    return (
        '<dl class="tiles">'
        + "".join(
            f'<div class="tile"><dt>{escape(name)}</dt><dd class="figure">{escape(figure)}</dd>'
            f'<dd class="who">{escape(row.label)}</dd></div>'
            for name, figure, row in tiles
        )
        + "</dl>"
    )


def _table(result: BenchResult) -> str:
    name = metric_name(result.metric)
    heads = (
        ("Method", ""),
        ("Settings", ""),
        (f"{name[:1].upper()}{name[1:]}", "number"),
        ("Trained", "number"),
        ("Peak memory", "number"),
        ("Tokens/s", "number"),
        ("Time", "number"),
        ("Artifact", "number"),
    )
    head = "".join(
        f'<th scope="col" role="columnheader" class="{css}">{escape(text)}</th>'
        for text, css in heads
    )
    best = result.best()
    rows = "".join(
        f'<tr role="row"{" class=best" if row is best else ""}>{_cells(row, i, result, heads)}</tr>'
        for i, row in _coloured(result)
    )
    return (
        f'<div class="rows"><table role="table"><thead role="rowgroup"><tr role="row">{head}</tr>'
        f'</thead><tbody role="rowgroup">{rows}</tbody></table></div>'
    )


def _cells(row: Row, colour: int, result: BenchResult, heads: Sequence[tuple[str, str]]) -> str:
    swatch = "" if row.method == "untuned" else f" s{colour % charts.COLOURS}"
    first = (
        f'<th scope="row" role="rowheader"><span class="swatch{swatch}"></span>'
        f"{escape(row.label)}</th>"
    )
    if row.failure is not None:
        return f'{first}<td role="cell" class="failure" colspan="7">{escape(row.failure)}</td>'
    quality = format_quality(row, result.metric)
    figure, bracket, interval = quality.partition(" [")
    parts = " / ".join(format_bytes(mean(row.memory(part))) for part in MEMORY_PARTS)
    total = format_bytes(mean(row.memory()))
    trained = row.spread(lambda run: run.trained_parameters)
    cells = (
        (escape(row.settings + failed_seeds(row)), "settings"),
        (
            f"{escape(figure)}<small>{escape((bracket + interval).strip())}</small>",
            "number quality",
        ),
        (
            f"{format_share(row.trained_share())}<small>{format_count(mean(trained))}</small>"
            if trained
            else ABSENT,
            "number",
        ),
        (f'<span title="{" / ".join(MEMORY_PARTS)}: {parts}">{total}</span>', "number"),
        (format_rate(mean(row.spread(lambda run: run.tokens_per_second))), "number"),
        (format_seconds(mean(row.spread(lambda run: run.seconds))), "number"),
        (format_bytes(mean(row.spread(lambda run: run.artifact_bytes))), "number"),
    )
    return first + "".join(
        f'<td role="cell" class="{css}{" absent" if text == ABSENT else ""}" '
        f'data-name="{escape(head, quote=True)}">'
        f"<span>{text}</span></td>"
        for (text, css), (head, _) in zip(cells, heads[1:], strict=True)
    )


def _coloured(result: BenchResult) -> list[tuple[int, Row]]:
    """Rows with the colour that is theirs in every plot; the untuned row takes none."""
    colour, coloured = -1, []
    for row in result.rows:
        colour += row.method != "untuned"
        coloured.append((max(colour, 0), row))
    return coloured


def _plots(result: BenchResult) -> list[str]:
    from peftlab.bench.report.figures import figures

    rows = [(i, r) for i, r in _coloured(result) if r.method != "untuned" and r.failure is None]
    if not rows:
        return []
    return ["<h2>Plots</h2>", '<div class="charts">', *figures(result, rows), "</div>"]


def _details(title: str, content: Mapping[str, object]) -> str:
    text = json.dumps(content, indent=2, default=str)
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"
