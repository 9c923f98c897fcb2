"""The GPU suite's dry run, whole, on a machine as bare as the one it is for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from benchmarks.gpu import suite
from benchmarks.gpu.layers import INT8, OURS, ROWS
from benchmarks.gpu.targets import OVER_8_BITS, SHAPES, SIZES, sizes
from tests.inductor import needs_inductor

REPOSITORY = Path(__file__).resolve().parents[3]

ABSENT = ("datasets", "pydantic", "trl", "liger_kernel")
BARE = f"""
import gc, runpy, sys
for name in {ABSENT!r}:
    sys.modules[name] = None
sys.argv = ["gpu_suite", *sys.argv[1:]]
import torch, transformers, peft
gc.freeze()  # which the suite collects after every case: what is imported is no garbage
try:
    runpy.run_module("benchmarks.gpu.suite", run_name="__main__", alter_sys=True)
except SystemExit as ended:
    if ended.code:
        raise
sys.argv = ["gpu_sweep", "--only", "down x", *sys.argv[1:]]
runpy.run_module("benchmarks.gpu.sweep", run_name="__main__", alter_sys=True)
"""


NO_HURRY = ("--minutes", "600")
"""Nothing is left out for want of time, however busy the machine is."""


def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The suite without what peftlab's own installation would bring."""
    environment = os.environ | {"PYTHONPATH": f".{os.pathsep}kernels"} | variables
    return subprocess.run(
        [sys.executable, "-c", BARE, *words], cwd=REPOSITORY, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every file of a dry run of the suite and the sweep, and what it said under `said`.

    One run for all processes that test: the first makes it, the others wait and read.
    """
    parallel = "PYTEST_XDIST_WORKER" in os.environ
    shared = tmp_path_factory.getbasetemp().parent if parallel else tmp_path_factory.mktemp("suite")
    out = shared / "dry-run-of-the-gpu-suite"
    with FileLock(shared / f"{out.name}.lock"):
        if not (out / "said").exists():
            done = run("--dry-run", *NO_HURRY, "--out", str(out), TRITON_INTERPRET="1")
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
            (out / "said").write_text(done.stdout)
    results = {path.name: json.loads(path.read_text()) for path in out.glob("*.json")}
    return {**results, "said": (out / "said").read_text()}


@pytest.mark.slow
@needs_inductor
def test_nothing_is_wrong_and_nothing_left_out(results: dict[str, Any]) -> None:
    assert "0 problems; left out: nothing" in results["said"]
    for name in ("correctness", "lora_linear", "llama_step", "llama_memory"):
        result = results[f"{name}--dry-run.json"]
        assert result["problems"] == result["skipped"] == []
        assert result["complete"]
        assert {"packages", "devices", "commit", "sources"} <= result["environment"].keys()


@pytest.mark.slow
def test_kernels_are_checked_first(results: dict[str, Any]) -> None:
    said = results["said"].splitlines()
    checked = next(n for n, line in enumerate(said) if line.endswith("failures"))
    assert checked < next(n for n, line in enumerate(said) if line.startswith("layers"))
    checks = results["correctness--dry-run.json"]["correctness"]["checks"]
    assert {check["row"] for check in checks} == {*OURS, *OVER_8_BITS}
    assert all(0 < e < 1e-2 for check in checks for e in check["errors"].values())


@pytest.mark.slow
def test_every_layer_has_rows_ratios_noise_and_limit(results: dict[str, Any]) -> None:
    layers = results["lora_linear--dry-run.json"]
    assert set(sizes(dry=True)) < set(SIZES) == set(sizes(dry=False))
    for rows, rank, dropout in sizes(dry=True):
        seven = layers[f"M={rows} r={rank} p={dropout:g}"]
        assert seven["shapes"].keys() == SHAPES.keys()
        for result in seven["shapes"].values():
            assert result["failed"] == {}
            assert result["noise"]["median"] > 0
            assert result["ratio_to_limit"].keys() >= {"ours, epilogue", "frozen base"}
            assert result["ratio_to_frozen base"]["frozen base"]["median"] == 1
    first = layers["M=8192 r=16 p=0"]
    assert set(ROWS) <= first["shapes"]["q_proj, o_proj"]["seconds"].keys()
    assert [target["limit"] for target in first["seven"]["targets"]] == [1.25, 1.6, 1.15]


@pytest.mark.slow
def test_two_sizes_and_a_step_are_over_8_bits(results: dict[str, Any]) -> None:
    for rows, rank, dropout in SIZES[:2]:
        seven = results["lora_linear--dry-run.json"][f"M={rows} r={rank} p={dropout:g} over 8 bits"]
        assert all(result["failed"] == {} for result in seven["shapes"].values())
        assert set(INT8) <= seven["seven"]["median_seconds"].keys()
        assert [target["limit"] for target in seven["seven"]["targets"]] == [1.8, 2.0, 1.0]
    step = results["llama_step--dry-run.json"]["1B p=0 over 8 bits"]
    assert step["failed"] == {}
    losses = step["first_loss"]
    assert abs(losses["ours, w8a8"] - losses["ours"]) < 0.05


@pytest.mark.slow
@needs_inductor
def test_one_size_has_compiled_peers(results: dict[str, Any]) -> None:
    layers = results["lora_linear--dry-run.json"]
    assert "PEFT, compiled" in layers["M=8192 r=16 p=0 compiled"]["seven"]["median_seconds"]


@pytest.mark.slow
def test_whole_steps_have_tokens_limits_and_memory(results: dict[str, Any]) -> None:
    step = results["llama_step--dry-run.json"]["8B p=0"]
    assert step["tokens"] == 16
    assert step["ratio_to_limit"]["ours"] > 0
    losses = step["first_loss"]
    assert abs(losses["ours"] - losses["PEFT"]) < 0.02
    memory = results["llama_memory--dry-run.json"]["8B"]["rows"]
    saved = {name: row["saved_by_adapted_layers"] for name, row in memory.items()}
    assert 0 == saved["frozen base"] < saved["ours"] < saved["PEFT, 16-bit adapters"]
    assert saved["ours, w8a8"] < saved["bnb+PEFT"]
    weights = {name: row["weight_bytes"] for name, row in memory.items()}
    assert weights["ours, w8a8"] < weights["ours"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dry-run"], "set TRITON_INTERPRET=1"),
        ([], "no CUDA device; use --dry-run"),
    ],
)
def test_a_dry_run_wants_the_interpreter_and_a_run_a_gpu(
    words: list[str], message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_suite", *words, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        suite.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_sweep_goes_the_same_way_without_a_gpu(results: dict[str, Any]) -> None:
    passes = results["tiles--dry-run.json"]["passes"]
    assert {name.split(" 33 ")[0] for name in passes} == {"down x", "down x, dropout"}
    for actual in passes.values():
        assert actual["failed"] == {}
        assert {"table", "64x128x4x3"} <= actual["micros"].keys()
