"""The convergence benchmark, cut to a few steps: every row trains, and a second call goes on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks.runs import int8_convergence
from benchmarks.runs.convergence_cases import CASES
from benchmarks.runs.int8_convergence import summary


def runs(fp32: list[float], w8a8: list[float]) -> dict[str, list[dict[str, object]]]:
    figures = {"lora fp32": fp32, "w8a8": w8a8}
    return {
        row: [{"held_out": value, "w8a16_layers": 0, "int8_layers": 4} for value in values]
        for row, values in figures.items()
    }


def test_worse_means_lower_accuracy_and_higher_loss() -> None:
    accuracy = next(case for case in CASES.values() if case.greater_is_better)
    loss = next(case for case in CASES.values() if not case.greater_is_better)
    figures = runs([0.7, 0.8, 0.9], [0.65, 0.75, 0.85])
    of_accuracy = summary(accuracy, figures)["rows"]["w8a8"]["worse_than_fp32_in_deviations"]
    of_loss = summary(loss, figures)["rows"]["w8a8"]["worse_than_fp32_in_deviations"]
    assert of_accuracy == pytest.approx(0.5)
    assert of_loss == pytest.approx(-0.5)


def test_one_seed_has_no_spread() -> None:
    row = summary(next(iter(CASES.values())), runs([0.7], [0.7]))["rows"]["w8a8"]
    assert math.isnan(row["stdev"])
    assert math.isnan(row["worse_than_fp32_in_deviations"])


def test_a_short_run_is_gone_on_with(
    shared_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "convergence.json"
    words = ["--out", str(out), "--cache", str(tmp_path / "cache"), "--cases", "e2e"]
    words += ["--steps", "3", "--seeds", "1", "--rows"]
    monkeypatch.setattr("sys.argv", ["x", *words, "lora fp32", "w8a8"])
    assert int8_convergence.main() == 0
    actual = json.loads(out.read_text())
    first = actual["runs"]["e2e"]
    assert {row: len(first[row][0]["losses"]) for row in first} == {"lora fp32": 3, "w8a8": 3}
    assert first["w8a8"][0]["losses"] == pytest.approx(first["lora fp32"][0]["losses"], rel=0.02)
    assert first["w8a8"][0]["losses"] != first["lora fp32"][0]["losses"]
    assert out.with_suffix(".png").stat().st_size > 0
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["x", *words, "w8a8"])
    assert int8_convergence.main() == 0
    assert "seed 0" not in capsys.readouterr().out
    assert json.loads(out.read_text())["runs"]["e2e"] == first
