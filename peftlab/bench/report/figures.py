"""The report's figures: which plots there are, with their captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape

from peftlab.bench.report import charts
from peftlab.bench.report.quantities import (
    format_bytes,
    format_count,
    format_metric,
    format_quality,
    format_rate,
    mean,
    metric_name,
)
from peftlab.bench.results import MEMORY_PARTS, BenchResult, Row

ColouredRow = tuple[int, Row]
MIB = 2**20


def figures(result: BenchResult, rows: Sequence[ColouredRow]) -> Iterator[str]:
    """Every figure that the finished rows have the numbers for, as HTML."""
    trained = _quality_against(
        result,
        rows,
        cost=lambda row: mean(row.spread(lambda run: run.trained_parameters)),
        axis=charts.log_axis,
        caption="against trained parameters",
        x_name="trained parameters (logarithmic)",
        show=format_count,
    )
    memory = _quality_against(
        result,
        rows,
        cost=lambda row: None if (m := mean(row.memory())) is None else m / MIB,
        axis=lambda values: charts.linear_axis(values, zero=True),
        caption="against peak memory",
        x_name="peak memory, MiB",
        show=lambda value: f"{value:,.0f}",
    )
    for figure in (trained, memory, _memory_parts(rows), _speed(rows), _losses(rows)):
        if figure:
            yield figure


def _figure(
    caption: str, note: str, content: str, *, plot: bool, key: str = "", wide: bool = False
) -> str:
    body = f'<div class="plot">{content}</div>' if plot else content
    return (
        f'<figure class="chart{" wide" if wide else ""}"><figcaption>{escape(caption)}'
        f"<small>{escape(note)}</small>"
        f"</figcaption>{key}{body}</figure>"
    )


def _quality_against(
    result: BenchResult,
    rows: Sequence[ColouredRow],
    *,
    cost: Callable[[Row], float | None],
    axis: Callable[[Sequence[float]], charts.Axis],
    caption: str,
    x_name: str,
    show: Callable[[float], str],
) -> str:
    points = []
    for colour, row in rows:
        quality, x = mean(row.metric(result.metric)), cost(row)
        if quality is None or not x:
            continue
        low, high = row.interval(result.metric) or (quality, quality)
        title = f"{row.label}: {format_quality(row, result.metric)}; {x_name}: {show(x)}"
        points.append(charts.Point(row.label, colour, x, quality, low, high, title))
    if not points:
        return ""
    name = metric_name(result.metric)
    drawn = charts.scatter(
        points,
        axis([p.x for p in points]),
        label=f"{name} {caption}. " + ". ".join(p.title for p in points),
        x_name=x_name,
        tick_x=show,
    )
    better = "Up" if result.greater_is_better else "Down"
    note = f"Whiskers: 95 % interval. {better} and left is better."
    untuned = next((row for row in result.rows if row.method == "untuned"), None)
    if untuned is not None and (floor := mean(untuned.metric(result.metric))) is not None:
        note += f" Untuned: {format_metric(floor)}."
    return _figure(f"{name[:1].upper()}{name[1:]} {caption}", note, drawn, plot=True)


def _memory_parts(rows: Sequence[ColouredRow]) -> str:
    bars = []
    for _, row in rows:
        total = mean(row.memory())
        if total is None:
            continue
        sizes = [(part, mean(row.memory(part)) or 0.0) for part in MEMORY_PARTS]
        if not any(size for _, size in sizes):
            sizes = [("total", total)]
        parts = tuple(
            (f"m{i}", size, f"{row.label}, {part}: {format_bytes(size)}")
            for i, (part, size) in enumerate(sizes)
        )
        bars.append(charts.Bar(row.label, format_bytes(total), parts))
    if not bars:
        return ""
    label = "Peak memory by part. " + ". ".join(
        "; ".join(title for _, _, title in bar.parts) for bar in bars
    )
    key = _key((f"m{i}", part) for i, part in enumerate(MEMORY_PARTS))
    drawn = charts.bars(bars, label=label)
    return _figure("Peak memory by part", "Less is better.", drawn, plot=False, key=key)


def _speed(rows: Sequence[ColouredRow]) -> str:
    bars = []
    for colour, row in rows:
        speed = row.spread(lambda run: run.tokens_per_second)
        if speed is None:
            continue
        text = format_rate(speed.mean)
        if speed.sd is not None:
            text += f" ± {speed.sd:,.0f}"
        css = f"s{colour % charts.COLOURS}"
        parts = ((css, speed.mean, f"{row.label}: {text} tokens a second"),)
        bars.append(charts.Bar(row.label, text, parts))
    if not bars:
        return ""
    label = "Training speed. " + ". ".join(bar.parts[0][2] for bar in bars)
    return _figure(
        "Training speed, tokens a second",
        "More is better.",
        charts.bars(bars, label=label),
        plot=False,
    )


def _losses(rows: Sequence[ColouredRow]) -> str:
    lines = [
        (row.label, colour, row.good[0].curve) for colour, row in rows if len(row.good[0].curve) > 1
    ]
    if not lines:
        return ""
    label = "Training loss by step. " + ". ".join(
        f"{name}: from {format_metric(line[0][1])} to {format_metric(line[-1][1])}"
        for name, _, line in lines
    )
    key = _key((f"s{colour % charts.COLOURS}", name) for name, colour, _ in lines)
    drawn = charts.curves(lines, label=label, x_name="optimizer step")
    return _figure(
        "Training loss", "Of the first seed. Lower is better.", drawn, plot=True, key=key, wide=True
    )


def _key(entries: Iterator[tuple[str, str]]) -> str:
    items = "".join(
        f'<li><span class="swatch {css}"></span>{escape(name)}</li>' for css, name in entries
    )
    return f'<ul class="key">{items}</ul>'
