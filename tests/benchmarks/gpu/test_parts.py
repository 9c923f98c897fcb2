"""What of the GPU suite needs no GPU: its clock on pretended events, limits, targets, budget."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks.gpu.clock import Budget, Clock
from benchmarks.gpu.layers import INT8, without_bitsandbytes
from benchmarks.gpu.limits import Ceilings, layer_limit, predicted, product_limit, step_limit
from benchmarks.gpu.steps import LLAMAS
from benchmarks.gpu.suite import Suite, plan
from benchmarks.gpu.targets import SHAPES, fusion_gains, seven_layers
from benchmarks.layers.layer_case import Case
from benchmarks.runs.llama import TARGETS

H100 = Ceilings(flops=700e12, bandwidth=3.0e12)


class Device:
    """A GPU whose every call takes `seconds`, told by its events."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.calls = seconds, 0

    def __call__(self) -> None:
        self.calls += 1

    def event(self, **_: Any) -> Any:
        device = self

        class Event:
            def record(self) -> None:
                self.at = device.calls * device.seconds

            def synchronize(self) -> None:
                pass

            def elapsed_time(self, end: Any) -> float:
                return float(end.at - self.at) * 1e3

        return Event()


@pytest.mark.parametrize(("seconds", "stretch"), [(1e-5, 101), (0.005, 4), (0.2, 1)])
def test_short_calls_run_in_stretches(
    seconds: float, stretch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(seconds)
    monkeypatch.setattr(torch.cuda, "Event", device.event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    clock = Clock("cuda")
    assert clock(device) == pytest.approx(seconds)
    before = device.calls
    assert clock(device) == pytest.approx(seconds)
    assert device.calls - before == stretch  # one of them goes ahead, where it is worth it
    assert len(clock.host[device]) == 3
    clock.forget()
    assert not clock.host


def test_without_a_gpu_it_is_the_wall_clock() -> None:
    assert Clock("cpu")(lambda: time.sleep(0.01)) >= 0.01


def test_a_product_is_bound_by_arithmetic_or_by_bytes() -> None:
    assert product_limit(8192, 4096, 4096, H100) == pytest.approx(2 * 8192 * 4096**2 / 700e12)
    thin = 2 * (8192 * 16 + 16 * 4096 + 8192 * 4096) / 3.0e12
    assert product_limit(8192, 16, 4096, H100) == pytest.approx(thin)


def test_a_layers_limit_is_a_little_above_its_two_products() -> None:
    case = Case(8192, 4096, 14336)
    products = 2 * product_limit(8192, 4096, 14336, H100)
    assert 1.02 * products < layer_limit(case, H100) < 1.15 * products
    assert layer_limit(replace(case, rank=64), H100) > layer_limit(case, H100)


def test_a_steps_limit_is_above_its_layers_and_below_thrice_their_sum() -> None:
    case = LLAMAS["8B"]
    layers = sum(32 * layer_limit(Case(case.tokens, k, n), H100) for k, n in case.shape.linears())
    assert layers < step_limit(case, H100) < 1.6 * layers


def test_the_seven_layers_are_llamas() -> None:
    linears = LLAMAS["8B"].shape.linears()
    assert len(linears) == len(TARGETS) == sum(number for *_, number in SHAPES.values())
    for in_features, out_features, number in SHAPES.values():
        assert linears.count((in_features, out_features)) == number


def test_predictions_are_of_the_same_processor_size_and_dropout() -> None:
    case = Case(8192, 4096, 14336)
    on_h200 = predicted(case, "h200")
    assert on_h200 == predicted(case, "h100-80gb-hbm3")
    assert on_h200 is not None
    assert on_h200["of"] == "h100"
    assert on_h200["ours, epilogue"] == pytest.approx(3681e-6)
    assert predicted(case, "geforce-rtx-4090") is not None
    assert on_h200["ours, w8a8"] == pytest.approx(2327e-6)
    assert predicted(replace(case, dropout=0.05), "h200") is None
    assert predicted(replace(case, rows=4096), "h200") is None
    assert predicted(case, "l40s") is None


def result(**seconds: float) -> dict[str, Any]:
    names = {"epilogue": "ours, epilogue", "cublas": "ours, cublas", "base": "frozen base"}
    named = {names.get(name, name): [value, value] for name, value in seconds.items()}
    medians = {name: all_[0] for name, all_ in named.items()}
    return {"seconds": named, "median_seconds": medians, "limit_seconds": 0.5}


def test_seven_layers_add_up_and_ours_is_the_faster_of_each_shape() -> None:
    one = result(epilogue=2.0, cublas=3.0, base=1.0, PEFT=4.0)
    other = result(epilogue=3.0, cublas=2.5, base=1.0, PEFT=4.0, odd=1.0)
    results = {shape: one if n % 2 else other for n, shape in enumerate(SHAPES)}
    actual = seven_layers(results)
    counts = [number for *_, number in SHAPES.values()]
    mine = sum(c * (2.0 if n % 2 else 2.5) for n, c in enumerate(counts))
    assert actual["median_seconds"]["ours"] == pytest.approx(mine)
    assert actual["median_seconds"]["PEFT"] == 28
    assert "odd" not in actual["median_seconds"]
    assert actual["ratio_to_limit"]["frozen base"] == pytest.approx(7 / 3.5)
    met = {(t["row"], t["to"]): t["met"] for t in actual["targets"]}
    assert met == {("PEFT", "ours"): True, ("ours", "frozen base"): False}


def test_targets_over_8_bits_are_judged_where_those_rows_ran() -> None:
    seconds = {"ours, w8a8": 1.0, "PEFT, 16-bit adapters": 1.9, "bnb+PEFT": 1.9, "base": 1.1}
    actual = seven_layers({shape: result(**seconds) for shape in SHAPES})
    met = {(t["row"], t["to"]): t["met"] for t in actual["targets"]}
    assert met == {
        ("PEFT, 16-bit adapters", "ours, w8a8"): True, ("bnb+PEFT", "ours, w8a8"): False,
        ("ours, w8a8", "frozen base"): True,
    }  # fmt: skip


@pytest.mark.parametrize("installed", [True, False])
def test_rows_of_bitsandbytes_need_it(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bnb") if installed else None)
    left = without_bitsandbytes(INT8)
    assert set(INT8) - set(left) == (set() if installed else {"bnb+PEFT", "bnb+PEFT, threshold 0"})


def test_the_gain_is_a_share_of_what_peft_adds() -> None:
    medians = {"frozen base": 1.0, "ours, epilogue": 1.5, "ours, cublas": 1.25, "PEFT": 2.0}
    assert fusion_gains(medians) == {"PEFT": 0.75}
    assert fusion_gains({"PEFT": 2.0}) == {}


def test_what_does_not_fit_is_left_out_and_what_fails_does_not_end_the_suite(
    tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = Suite(tmp_path, Budget(50), False, "cpu", Clock("cpu"))
    ran: list[str] = []

    def fail() -> None:
        raise RuntimeError("no kernel image")

    steps: list[tuple[str, float, Callable[[], object]]] = [
        ("long", 60, lambda: ran.append("long")), ("broken", 1, fail),
        ("short", 1, lambda: ran.append("short")),
    ]  # fmt: skip
    for step in steps:
        suite.attempt(*step)
    assert ran == ["short"]
    assert suite.skipped == ["long"]
    assert suite.problems == ["broken: RuntimeError: no kernel image"]
    assert "left out" in capsys.readouterr().out


def test_a_peer_that_fails_is_told_and_one_of_ours_is_a_problem(tmp_path: Any) -> None:
    suite = Suite(tmp_path, Budget(50), False, "cpu", Clock("cpu"))
    suite.note_failures("8B", {"PEFT": "out of memory", "ours, epilogue": "wrong"})
    assert suite.problems == ["8B, ours, epilogue: wrong"]
    assert suite.skipped == ["8B, PEFT: out of memory"]


def test_the_plan_fits_ten_minutes_but_for_its_tail(tmp_path: Any) -> None:
    suite = Suite(tmp_path, Budget(540), False, "cpu", Clock("cpu"))
    names = [what for what, *_ in plan(suite)]
    assert len(names) == len(set(names))
    assert names[0].startswith("layers M=8192 r=16 p=0,")
