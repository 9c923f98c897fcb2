"""The benchmark commands write what they promise.

They run in this process, where the imports are done; the peak of a step and pytest's suites are
measured in processes of their own, as by hand.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.layers import lora_linear_pairs, saved_bytes
from benchmarks.layers.lora_linear_pairs import COMPARISONS, INT8, INT8_OF_KIND, OF_KIND
from benchmarks.layers.peers import INT8_PEERS, PEERS
from benchmarks.result_files import cpu_kind
from benchmarks.runs import llama_step_pairs
from tests.forked import forked

REPOSITORY = Path(__file__).resolve().parents[2]

# As from a shell: no poisoned memory, and a warning is no error.
pytestmark = [pytest.mark.poison_empty(False), pytest.mark.filterwarnings("ignore")]

Command = Callable[..., str]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`command(module, *words)`: what the module's `main` prints; it returns 0 or nothing."""
    monkeypatch.chdir(REPOSITORY)

    def run(module: Any, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *words])
        assert not module.main()
        return capsys.readouterr().out

    return run


def peak_in_a_fork(name: str, tiny: bool, *, int8: bool) -> int:
    """`peak_in_a_process` by the same words, without a fresh process's imports."""
    words = ["--peak-of", name, *["--tiny"] * tiny, *["--int8"] * int8]
    done = forked(lambda: llama_step_pairs.main(words))
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def has_environment(environment: dict[str, Any]) -> bool:
    return {"commit", "sources", "packages", "cpu", "devices", "command"} <= environment.keys()


def test_comparisons_name_existing_rows() -> None:
    assert {case for cases in OF_KIND.values() for case in cases} == COMPARISONS.keys()
    assert {case for cases in INT8_OF_KIND.values() for case in cases} == INT8.keys()
    for comparison in (*COMPARISONS.values(), *INT8.values()):
        named = {row for bar in comparison.bars for row in (bar.row, bar.to)}
        assert named <= set(comparison.rows) <= {**PEERS, **INT8_PEERS}.keys()


def test_layers_take_turns(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "layers.json"
    said = command(
        lora_linear_pairs, "--tiny", "--pairs", "3", "--case", "bf16-dropout",
        "--case", "bf16-weights", "--case", "bf16-hopeless", "--json", str(out),
    )  # fmt: skip
    assert cpu_kind() in said
    result = json.loads(out.read_text())
    assert has_environment(result["environment"])
    dropout = result["comparisons"]["bf16-dropout"]
    assert {len(all_) for all_ in dropout["seconds"].values()} == {3}
    assert [bar["limit"] for bar in dropout["bars"]] == [1.3, 1.15]
    assert dropout["counts"]["ours"]["flops"] > 0
    assert result["comparisons"]["bf16-hopeless"]["rounds"] == 1


def test_layers_and_steps_over_8_bits(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "layers.json"
    monkeypatch.setattr(llama_step_pairs, "peak_in_a_process", peak_in_a_fork)
    words = ("--int8", "--tiny", "--pairs", "1", "--json", str(out))
    command(lora_linear_pairs, "--case", "int8", *words)
    counts = json.loads(out.read_text())["comparisons"]["int8"]["counts"]
    ours, theirs = counts["ours, w8a8"]["saved_bytes"], counts["bnb+PEFT"]["saved_bytes"]
    assert ours < 0.5 * theirs
    command(llama_step_pairs, *words)
    memory = json.loads(out.read_text())["memory"]
    losses = [row["loss"] for row in memory.values()]
    assert max(losses) - min(losses) < 0.02


def test_whole_steps_take_turns(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "step.json"
    said = command(llama_step_pairs, "--tiny", "--pairs", "2", "--json", str(out))
    assert "24 tokens a step" in said
    result = json.loads(out.read_text())
    memory = result["memory"]
    first = next(iter(memory))
    assert memory[first]["peak_anonymous_bytes"] >= 0  # so small a step may find free pages
    assert memory[first]["peak_live_bytes"] > 0
    assert memory[first]["weight_bytes"] < memory["PEFT, fp32"]["weight_bytes"]
    losses = [row["loss"] for row in memory.values()]
    assert max(losses) - min(losses) < 0.02
    assert result["bars"][0]["to"] == "PEFT, fp32"


def test_saved_bytes_fail_where_a_bar_is_missed(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "saved.json"
    said = command(saved_bytes, "--layers", "2", "--tokens", "8", "--json", str(out))
    assert said.count("met ") == 6
    assert has_environment(json.loads(out.read_text())["environment"])


def test_the_suites_have_counts_beside_times(tmp_path: Path) -> None:
    out = tmp_path / "suites.json"
    suites = [f"benchmarks/layers/kernels_{what}.py" for what in ("operator", "layer", "step")]
    # In an environment that knows of no other test.
    hidden = ("PYTEST_XDIST_WORKER", "PYTEST_CURRENT_TEST", "PYTEST_ADDOPTS")
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *suites,
            "--benchmark-json", str(out), "--benchmark-max-time=0.001", "--benchmark-min-rounds=1",
            "-k", "forward_backward or test_layer and frozen or test_llama_step and PEFT and fp32",
        ],
        env={key: value for key, value in os.environ.items() if key not in hidden},
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert f"processor: {cpu_kind()}" in done.stdout
    result = json.loads(out.read_text())
    assert has_environment(result["machine_info"]["peftlab"])
    names = {benchmark["name"] for benchmark in result["benchmarks"]}
    assert {"test_layer[frozen base-p=0.1]", "test_llama_step[PEFT, fp32]"} <= names
    counts = {"saved_bytes", "peak_live_bytes", "flops", "operators", "bytes_moved"}
    for benchmark in result["benchmarks"]:
        assert counts <= benchmark["extra_info"].keys(), benchmark["name"]
        assert benchmark["stats"]["median"] > 0
