from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from peftlab.bench.report.charts import linear_axis, log_axis
from peftlab.bench.report.page import render_page
from peftlab.bench.report.quantities import (
    findings,
    format_bytes,
    format_count,
    format_metric,
    format_quality,
    format_rate,
    format_seconds,
    format_share,
)
from peftlab.bench.report.write import markdown, text_table, write_reports
from peftlab.bench.results import BenchResult, Row, SeedRun

MIB = 2**20
VOID = {"meta", "br", "hr", "img", "link", "input"}


def seed_run(quality: float, trained: int, memory: int, seed: int = 42) -> SeedRun:
    return SeedRun(
        seed,
        folder="runs/x",
        quality={"accuracy": quality, "loss": 0.2},
        interval={"accuracy": (quality - 0.02, quality + 0.02)},
        trained_parameters=trained,
        total_parameters=22_000_000,
        peak_memory={
            "total": memory * MIB,
            "weights": 40 * MIB,
            "gradients": 2 * MIB,
            "optimizer": 4 * MIB,
            "activations": (memory - 46) * MIB,
        },
        tokens_per_second=1234.5,
        seconds=61.0,
        artifact_bytes=3 * MIB,
        learning_rate=2e-3,
        curve=((5.0, 0.7), (10.0, 0.4), (15.0, 0.3)),
    )


@pytest.fixture
def result() -> BenchResult:
    rows = (
        Row(
            "untuned",
            "untuned",
            "majority class",
            {},
            (SeedRun(42, quality={"accuracy": 0.5}, interval={"accuracy": (0.46, 0.54)}),),
        ),
        Row(
            "head", "head", "mean pooling", {"method": {"name": "head"}}, (seed_run(0.80, 770, 90),)
        ),
        Row(
            'lora <r="8"> & co',
            "lora",
            "r=8 | alpha=16",
            {"method": {"name": "lora"}},
            (seed_run(0.92, 340_000, 180), seed_run(0.93, 340_000, 180, seed=43)),
        ),
        Row("full", "full", "all weights", {}, (seed_run(0.915, 22_000_000, 360),)),
        Row(
            "broken",
            "lora",
            "",
            {},
            (SeedRun(42, error="No module\nis <here>", kind="CheckFailed"),),
        ),
    )
    return BenchResult(
        "hub/a-model", "text-classification", "/data/reviews", "accuracy", "test",
        2, 200.0, True, {"cpu": {"model": "A CPU"}, "python": "3.11"}, rows,
    )  # fmt: skip


class Balance(HTMLParser):
    """Collects what is opened and never closed, attributes and visible text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.said: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said.append(data)


def test_the_page_is_well_formed_and_needs_nothing_else(result: BenchResult) -> None:
    page = render_page(result)
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert not [v for k, v in parser.attributes if k in {"src", "href"}]
    assert "@import" not in page
    assert "url(" not in page
    assert "<script" not in page
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page
    text = "".join(parser.said)
    assert 'lora <r="8"> & co' in text
    assert "is <here>" in text


def test_every_plot_is_there_and_has_words_for_who_cannot_see_it(result: BenchResult) -> None:
    page = render_page(result)
    plots = re.findall(r'<svg role="img".*?</svg>(?=</div>|</figure>)', page, re.S)
    assert len(plots) == 5
    for plot in plots:
        svg = ElementTree.fromstring(plot)
        label = svg.get("aria-label") or ""
        assert "full" in label
        assert "broken" not in label
    assert plots[0].count("<circle") == 3
    # Three finished methods of four parts each: the failed and the untuned have no memory.
    assert plots[2].count('class="bar') == 12
    assert plots[4].count("<polyline") == 3


def test_positions_stay_inside_the_plot(result: BenchResult) -> None:
    page = render_page(result)
    for value in re.findall(r'(?:cx|x1|x2)="([\d.-]+)%"', page):
        assert 0 <= float(value) <= 100
    assert "nan" not in page.lower().replace("finance", "")


def test_a_result_without_any_finished_method_still_has_a_page(result: BenchResult) -> None:
    broken = result.rows[-1]
    empty = BenchResult("m", "causal-lm", "d", "", "test", 1, 1.0, False, {}, (broken,))
    page = render_page(empty)
    assert "No method finished" in page
    assert "stopped before the end" in page
    assert "<svg" not in page
    assert "failed: No module" in text_table(empty)


def test_missing_measurements_leave_gaps_not_errors(result: BenchResult) -> None:
    bare = Row("bare", "lora", "r=1", {}, (SeedRun(1, quality={"perplexity": 12.5}),))
    page = render_page(
        BenchResult("m", "causal-lm", "d", "perplexity", "test", 1, 1.0, True, {}, (bare,))
    )
    assert "12.5" in page
    assert "Peak memory by part" not in page


def test_reports_are_written_together(result: BenchResult, tmp_path: Path) -> None:
    page = write_reports(result, tmp_path / "new")
    assert page == tmp_path / "new" / "report.html"
    assert sorted(p.name for p in page.parent.iterdir()) == [
        "report.html",
        "results.json",
        "results.md",
    ]
    assert json.loads((page.parent / "results.json").read_text())["metric"] == "accuracy"


def test_markdown_is_one_table_with_as_many_cells_in_each_row(result: BenchResult) -> None:
    lines = [line for line in markdown(result).splitlines() if line.startswith("|")]
    cells = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
    assert len(lines) == 2 + len(result.rows)
    assert len(cells) == 1
    assert "failed: No module is <here>" in markdown(result)
    assert r"r=8 \| alpha=16" in markdown(result)


def test_findings_claim_no_more_than_the_intervals(result: BenchResult) -> None:
    said = " ".join(findings(result))
    assert 'lora <r="8"> & co has the best accuracy' in said
    assert "0.925 ± 0.007 [0.905, 0.945]" in said
    assert "50 % of full fine-tuning's" in said
    assert "The 95 % interval of full overlaps that of lora" in said
    assert "majority class" in said


def test_seeds_that_failed_are_told_in_every_report(result: BenchResult) -> None:
    reports = (text_table, markdown, render_page)
    for show in reports:
        assert "seeds failed" not in show(result)
    assert "mean of 2 seeds" in markdown(result)
    assert "mean of 2 seeds" in render_page(result)
    full = result.rows[3]
    runs = (*full.runs, SeedRun(43, error="killed"))
    partly = replace(result, rows=(*result.rows[:3], replace(full, runs=runs), result.rows[4]))
    for show in reports:
        assert show(partly).count("(1 of 2 seeds failed)") == 1
        assert "mean of 2 seeds" not in show(partly)
    for show in (markdown, render_page):
        assert "mean of the seeds that finished, of 2" in show(partly)


def test_a_lower_perplexity_is_better() -> None:
    rows = tuple(
        Row(str(p), "lora", "", {}, (SeedRun(1, quality={"perplexity": p}),))
        for p in (9.0, 4.0, 7.0)
    )
    found = BenchResult("m", "causal-lm", "d", "perplexity", "test", 1, 1.0, True, {}, rows)
    best = found.best()
    assert best is not None
    assert best.label == "4.0"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (format_bytes(770 * 4), "3.0 KiB"),
        (format_bytes(290 * MIB), "290 MiB"),
        (format_bytes(1536 * MIB), "1.5 GiB"),
        (format_bytes(None), "-"),
        (format_count(770), "770"),
        (format_count(341_000), "341 k"),
        (format_count(22_713_216), "22.7 M"),
        (format_share(0.015), "1.5 %"),
        (format_share(0.000034), "0.0034 %"),
        (format_share(1.0), "100 %"),
        (format_metric(0.93076), "0.931"),
        (format_metric(1234.5), "1,234"),
        (format_rate(1482.6), "1,480"),
        (format_rate(88.24), "88.2"),
        (format_seconds(61.04), "61.0 s"),
        (format_seconds(212), "3.5 min"),
    ],
)
def test_numbers_are_short(shown: str, expected: str) -> None:
    assert shown == expected


def test_quality_without_an_interval() -> None:
    row = Row("x", "lora", "", {}, (SeedRun(1, quality={"accuracy": 0.5}),))
    assert format_quality(row, "accuracy") == "0.500"
    assert format_quality(row, "f1_macro") == "-"


def test_axes_hold_their_values_between_round_ends() -> None:
    axis = linear_axis([0.735, 0.948])
    assert axis.low <= 0.735
    assert axis.high >= 0.948
    assert axis.ticks == (0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
    assert linear_axis([3.0, 3.0]).at(3.0) == pytest.approx(0.5, abs=0.3)
    wide = log_axis([770, 22_700_000])
    assert wide.ticks == (1e3, 1e4, 1e5, 1e6, 1e7)
    assert 0 < wide.at(770) < wide.at(22_700_000) < 1


def test_validation_chooses_and_test_is_only_reported() -> None:
    def row(label: str, validation: float, test: float) -> Row:
        run = SeedRun(1, quality={"accuracy": test}, validation={"accuracy": validation})
        return Row(label, "lora", "", {}, (run,))

    rows = (row("lucky on test", 0.80, 0.95), row("chosen", 0.85, 0.90))
    found = BenchResult("m", "text-classification", "d", "accuracy", "test", 1, 1.0, True, {}, rows)
    best = found.best()
    assert best is not None
    assert best.label == "chosen"
    assert findings(found)[0].startswith("chosen, best on validation, has accuracy on test 0.900")
    # Without validation in every row there is nothing else to choose by.
    unvalidated = Row("bare", "full", "", {}, (SeedRun(1, quality={"accuracy": 0.97}),))
    without = replace(found, rows=(*rows, unvalidated))
    assert without.chosen_on == "test"
    best = without.best()
    assert best is not None
    assert best.label == "bare"
