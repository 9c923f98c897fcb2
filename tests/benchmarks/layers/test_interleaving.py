"""Turns, ratios and bars on a clock whose times are known."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.layers.interleaving import Bar, noise, ratio, summary, table, take_turns


def seconds() -> dict[str, list[float]]:
    return {"ours": [1.0, 2.0, 3.0], "PEFT": [2.0, 2.0, 9.0], "ours (again)": [1.0, 2.2, 3.0]}


def test_rows_take_turns_in_both_orders_and_the_first_runs_twice() -> None:
    calls: list[str] = []

    def clock(run: Callable[[], object]) -> float:
        run()
        return float(len(calls))

    rows = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    taken = take_turns(rows, rounds=2, warm_up=1, clock=clock)
    assert calls == ["a", "b", "a", "a", "b", "a", "a", "b", "a"]
    assert taken == {"a": [6.0, 7.0], "b": [5.0, 8.0], "a (again)": [4.0, 9.0]}


def test_a_ratio_is_the_median_of_the_rounds_ratios_not_of_the_times() -> None:
    actual = ratio(seconds(), "PEFT", "ours")
    assert (actual.median, actual.least, actual.greatest) == (2.0, 1.0, 3.0)
    assert noise(seconds()).median == 1.0
    assert noise(seconds()).greatest == pytest.approx(1.1)


@pytest.mark.parametrize(("limit", "at_most", "met"), [
    (2.0, True, True), (1.9, True, False), (2.0, False, True), (2.1, False, False),
])  # fmt: skip
def test_a_bar_is_judged_by_the_median(limit: float, at_most: bool, met: bool) -> None:
    bar = Bar("PEFT", "ours", limit, at_most)
    judged = bar.judge(seconds())
    assert judged is not None
    assert judged["met"] is met
    assert ("MISSED" in table(seconds(), [bar])) is not met


def test_a_bar_on_a_row_that_did_not_run_is_not_judged() -> None:
    assert summary(seconds(), [Bar("ours", "frozen base", 1.06)])["bars"] == []


def test_the_summary_has_every_time() -> None:
    actual = summary(seconds(), [Bar("PEFT", "ours", 1.2, at_most=False)])
    assert actual["rounds"] == 3
    assert actual["median_seconds"] == {"ours": 2.0, "PEFT": 2.0, "ours (again)": 2.2}
    assert actual["ratio_to_ours"]["PEFT"]["median"] == 2.0
    assert actual["seconds"]["PEFT"] == [2.0, 2.0, 9.0]
    assert [bar["met"] for bar in actual["bars"]] == [True]
