"""Plots as inline SVG. Positions are in per cent and text in pixels, so that a plot may be of any
width and its text is of one size; colours are CSS variables, so that it fits light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

HEIGHT = 230
COLOURS = 8
LABEL_LINE = 15
# Labels are kept apart as if the plot were this wide: a phone's.
NARROW = 270


@dataclass(frozen=True, slots=True)
class Point:
    """A row in a scatter plot; `low` and `high` are the ends of its interval."""

    label: str
    colour: int
    x: float
    y: float
    low: float
    high: float
    title: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A row in a bar chart: `parts` are (class, value, title) from left to right."""

    label: str
    value: str
    parts: tuple[tuple[str, float, str], ...]


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps values to [0, 1] and names the round values on the way."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value lies: 0 at the low end, 1 at the high one."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def linear_axis(values: Sequence[float], *, zero: bool = False, ticks: int = 5) -> Axis:
    """An axis that holds all values between round ends; from zero where asked."""
    low, high = (0.0 if zero else min(values)), max(values)
    if high <= low:
        low, high = (0.0, 1.0) if high <= 0 else (low * 0.9, high * 1.1)
    raw = (high - low) / ticks
    magnitude: float = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    marks = tuple(round(i * step, 12) for i in range(first, last + 1))
    return Axis(marks[0], marks[-1], marks)


def log_axis(values: Sequence[float]) -> Axis:
    """A logarithmic axis with a little room at both ends and a tick at every power of ten."""
    low, high = min(values) / 2, max(values) * 2
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    exponents = range(first, last + 1)
    stride = max(1, math.ceil(len(exponents) / 6))
    return Axis(low, high, tuple(10.0**e for e in exponents[::stride]), log=True)


def _svg(height: int, label: str, body: list[str]) -> str:
    return (
        f'<svg role="img" aria-label="{escape(label, quote=True)}" width="100%" height="{height}">'
        + "".join(body)
        + "</svg>"
    )


def _grid(x: Axis, y: Axis, x_name: str, tick_x: Callable[[float], str]) -> list[str]:
    digits = max(0, -math.floor(math.log10(abs(y.ticks[1] - y.ticks[0])) + 1e-9))
    body = []
    for tick in y.ticks:
        at = HEIGHT * (1 - y.at(tick))
        body.append(f'<line class="grid" x1="0" x2="100%" y1="{at:.1f}" y2="{at:.1f}"/>')
        body.append(f'<text class="tick end" x="-8" y="{at + 4:.1f}">{tick:,.{digits}f}</text>')
    body.append(f'<line class="axis" x1="0" x2="100%" y1="{HEIGHT}" y2="{HEIGHT}"/>')
    for tick in x.ticks:
        at = 100 * x.at(tick)
        side = "start" if at < 3 else "end" if at > 97 else "mid"
        name = escape(tick_x(tick))
        body.append(f'<text class="tick {side}" x="{at:.2f}%" y="{HEIGHT + 17}">{name}</text>')
    body.append(f'<text class="name mid" x="50%" y="{HEIGHT + 36}">{escape(x_name)}</text>')
    return body


def scatter(
    points: Sequence[Point],
    x: Axis,
    *,
    label: str,
    x_name: str,
    tick_x: Callable[[float], str],
) -> str:
    """Quality against a cost, with a whisker for each interval and each point named beside it."""
    y = linear_axis([v for p in points for v in (p.low, p.high, p.y)])
    body = _grid(x, y, x_name, tick_x)
    dots: list[tuple[float, float]] = []
    taken: list[tuple[float, float, float]] = []
    names: list[str] = []
    for p in sorted(points, key=lambda p: -p.y):
        at, top = x.at(p.x), HEIGHT * (1 - y.at(p.y))
        low, high = HEIGHT * (1 - y.at(p.low)), HEIGHT * (1 - y.at(p.high))
        # Points that would hide each other stand side by side, away from their names.
        left = at > 0.6
        aside = sum(abs(at - x0) < 0.03 and abs(top - y0) < 14 for x0, y0 in dots) * 11
        aside = aside if left else -aside
        dots.append((at, top))
        body.append(
            f'<g class="s{p.colour % COLOURS}" transform="translate({aside} 0)">'
            f"<title>{escape(p.title)}</title>"
            f'<line class="whisker" x1="{at:.2%}" x2="{at:.2%}" y1="{low:.1f}" y2="{high:.1f}"/>'
            f'<circle class="dot" cx="{at:.2%}" cy="{top:.1f}" r="6"/></g>'
        )
        width = (7.5 * len(p.label) + 14) / NARROW
        start, end = (at - width, at) if left else (at, at + width)
        beside = [other for a, b, other in taken if start < b and end > a]
        line = next(
            line
            for distance in range(0, 4 * HEIGHT, 2)
            for line in (top + 4 - distance, top + 4 + distance)
            if all(abs(line - other) >= LABEL_LINE for other in beside)
        )
        taken.append((start, end, line))
        names.append(
            f'<text class="label {"end" if left else "start"}" x="{at:.2%}" '
            f'dx="{-12 if left else 12}" y="{line:.1f}">{escape(p.label)}</text>'
        )
    return _svg(HEIGHT, label, body + names)


def bars(rows: Sequence[Bar], *, label: str) -> str:
    """Horizontal bars from zero, each under its name and value."""
    longest = max(sum(value for _, value, _ in row.parts) for row in rows) or 1.0
    pitch = 42
    body: list[str] = []
    for i, row in enumerate(rows):
        top = i * pitch
        body.append(f'<text class="label start" x="0" y="{top + 13}">{escape(row.label)}</text>')
        body.append(f'<text class="value end" x="100%" y="{top + 13}">{escape(row.value)}</text>')
        body.append(f'<rect class="track" x="0" y="{top + 20}" width="100%" height="12" rx="3"/>')
        start = 0.0
        for css, value, title in row.parts:
            width = value / longest
            body.append(
                f'<rect class="bar {css}" x="{start:.3%}" y="{top + 20}" width="{width:.3%}" '
                f'height="12"><title>{escape(title)}</title></rect>'
            )
            start += width
    return _svg(len(rows) * pitch, label, body)


def curves(
    lines: Sequence[tuple[str, int, Sequence[tuple[float, float]]]], *, label: str, x_name: str
) -> str:
    """Lines over steps, one a row: (label, colour, points)."""
    points = [point for _, _, line in lines for point in line]
    x = Axis(0.0, max(p[0] for p in points), ())
    marks = linear_axis([0.0, x.high], zero=True, ticks=4)
    x = Axis(0.0, x.high, tuple(t for t in marks.ticks if t <= x.high))
    y = linear_axis([p[1] for p in points], ticks=4)
    body = _grid(x, y, x_name, lambda tick: f"{tick:,.0f}")
    body.append(f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" height="{HEIGHT}">')
    for name, colour, line in lines:
        path = " ".join(f"{1000 * x.at(a):.1f},{1000 * (1 - y.at(b)):.1f}" for a, b in line)
        body.append(
            f'<polyline class="curve s{colour % COLOURS}" points="{path}">'
            f"<title>{escape(name)}</title></polyline>"
        )
    body.append("</svg>")
    return _svg(HEIGHT, label, body)
