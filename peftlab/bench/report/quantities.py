"""Numbers as a reader wants them: with a unit, three digits, and no more."""

from __future__ import annotations

import math

from peftlab.bench.results import BenchResult, Row, Spread
from peftlab.config.methods.options import trains_all

ABSENT = "-"
NO_METRIC = "no metric"


def format_bytes(count: float | None) -> str:
    """Bytes in the unit that keeps one to three digits before the point."""
    if count is None:
        return ABSENT
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            value = count / size
            return f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"
    return f"{count:.0f} B"


def format_count(count: float | None) -> str:
    """A count with its thousands: 770, 341 k, 22.7 M."""
    if count is None:
        return ABSENT
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if count >= size:
            value = count / (size if unit != "k" else 1e3)
            return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"
    return f"{count:,.0f}"


def format_share(share: float | None) -> str:
    """A fraction in per cent, with two digits that mean something."""
    if share is None:
        return ABSENT
    percent = 100 * share
    if percent >= 10 or percent == 0:
        return f"{percent:.0f} %"
    digits = max(1, 1 - math.floor(math.log10(percent)))
    return f"{percent:.{digits}f} %"


def format_metric(value: float | None) -> str:
    """A quality: three decimals for a share, three digits for a perplexity."""
    if value is None:
        return ABSENT
    if abs(value) < 10:
        return f"{value:.3f}"
    return f"{value:.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def format_rate(value: float | None) -> str:
    """Tokens a second, to three digits."""
    if value is None:
        return ABSENT
    if value < 1000:
        return f"{value:.3g}"
    magnitude: float = 10 ** (math.floor(math.log10(value)) - 2)
    return f"{round(value / magnitude) * magnitude:,.0f}"


def format_seconds(value: float | None) -> str:
    """Seconds, or minutes from 100 s on."""
    if value is None:
        return ABSENT
    return f"{value:.1f} s" if value < 100 else f"{value / 60:.1f} min"


def mean(spread: Spread | None) -> float | None:
    """The mean, where there is one."""
    return None if spread is None else spread.mean


def metric_name(metric: str) -> str:
    """A metric's name in prose."""
    return {"f1_macro": "macro F1", "f1_micro": "micro F1"}.get(metric, metric.replace("_", " "))


def format_quality(row: Row, metric: str) -> str:
    """Mean, spread over seeds, and the 95 % interval."""
    spread = row.metric(metric)
    if spread is None:
        return ABSENT if any(run.quality for run in row.good) else NO_METRIC
    text = format_metric(spread.mean)
    if spread.sd is not None:
        text += f" ± {format_metric(spread.sd)}"
    interval = row.interval(metric)
    if interval is not None:
        text += f" [{format_metric(interval[0])}, {format_metric(interval[1])}]"
    return text


def failed_seeds(row: Row) -> str:
    """What to add to a row of which only some seeds finished; empty elsewhere."""
    failed = len(row.runs) - len(row.good)
    return f" ({failed} of {len(row.runs)} seeds failed)" if failed and row.good else ""


def averaged(result: BenchResult) -> str:
    """Over how many seeds the numbers are means, in words; empty for one."""
    if result.seeds == 1:
        return ""
    if any(failed_seeds(row) for row in result.rows):
        return f"mean of the seeds that finished, of {result.seeds}"
    return f"mean of {result.seeds} seeds"


def why_nothing_scored(result: BenchResult) -> str | None:
    """Why there is no quality to compare; None where there is."""
    if result.scored:
        return None
    if not result.trained:
        return "No method finished; the reasons are in the table."
    return (
        "Methods finished, but none was scored: there is no metric, because the data has neither "
        "a test nor a validation split."
    )


def overlapping(result: BenchResult, best: Row) -> tuple[Row, ...]:
    """Rows whose interval meets the best one's: better is not shown by this much data."""
    top = best.interval(result.metric)
    if top is None:
        return ()
    return tuple(
        row
        for row in result.trained
        if row is not best
        and (other := row.interval(result.metric)) is not None
        and other[0] <= top[1]
        and other[1] >= top[0]
    )


def findings(result: BenchResult) -> list[str]:
    """What the table says, in sentences that claim no more than the intervals allow."""
    best = result.best()
    if best is None:
        return [why_nothing_scored(result) or f"No method was scored by {result.metric}."]
    name = metric_name(result.metric)
    reached = (
        f"{format_quality(best, result.metric)}, "
        f"training {format_share(best.trained_share())} of the weights."
    )
    sentences = [
        f"{best.label} has the best {name} on {result.split}: {reached}"
        if result.chosen_on == result.split
        else f"{best.label}, best on {result.chosen_on}, has {name} on {result.split} {reached}"
    ]
    full = next((row for row in result.trained if trains_all(row.method)), None)
    best_memory = None if best is full else mean(best.memory())
    full_memory = None if full is None else mean(full.memory())
    if best_memory and full_memory:
        sentences.append(
            f"Its peak memory is {format_bytes(best_memory)}, "
            f"{format_share(best_memory / full_memory)} of full fine-tuning's."
        )
    if ties := overlapping(result, best):
        labels = [row.label for row in ties]
        listed = " and ".join(filter(None, [", ".join(labels[:-1]), labels[-1]]))
        intervals = "interval of {} overlaps" if len(labels) == 1 else "intervals of {} overlap"
        sentences.append(
            f"The 95 % {intervals.format(listed)} that of {best.label}: with this much data they "
            "are not clearly different."
        )
    untuned = next((row for row in result.rows if row.method == "untuned"), None)
    if untuned is not None and (value := untuned.metric(result.metric)) is not None:
        what = f" ({untuned.settings})" if untuned.settings else ""
        sentences.append(f"Without training{what}, the {name} is {format_metric(value.mean)}.")
    return sentences
