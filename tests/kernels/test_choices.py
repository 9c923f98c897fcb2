"""Measured choices: made once, kept on disk for this machine, replayed, or switched off."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch

from peftlab_kernels import choices, dispatch

CPU = torch.device("cpu")
Candidates = Mapping[str, Callable[[], object]]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache file in use; nothing remembered before or after."""
    file = tmp_path / "deep" / "choices.json"
    monkeypatch.setenv("PEFTLAB_KERNEL_CHOICES", str(file))
    choices.forget()
    yield file
    choices.forget()


def two(slow: str = "left", fast: str = "right") -> Candidates:
    return {slow: lambda: time.sleep(0.01), fast: lambda: None}


def never() -> Candidates:
    raise AssertionError("measured again")


def test_the_fastest_is_chosen_and_kept_for_the_next_process(cache: Path) -> None:
    assert choices.choose("which", CPU, two, default="left") == "right"
    assert choices.choose("which", CPU, never, default="left") == "right"
    (made,) = choices.made()
    assert (made.question, made.answer, made.source) == ("which", "right", "measured")
    assert made.seconds["left"] > made.seconds["right"]
    choices.forget()
    assert choices.choose("which", CPU, never, default="left") == "right"
    assert choices.made()[0].source == "kept"


def test_another_number_of_threads_is_another_machine(cache: Path) -> None:
    choices.choose("which", CPU, two, default="left")
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        swapped = choices.choose("which", CPU, lambda: two("right", "left"), default="left")
    finally:
        torch.set_num_threads(threads)
    assert swapped == "left"
    assert choices.choose("which", CPU, never, default="left") == "right"
    assert len(json.loads(cache.read_text())) == 2


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"x": 3}', "\x00"])
def test_a_damaged_file_is_measured_anew(cache: Path, content: str) -> None:
    cache.parent.mkdir()
    cache.write_text(content)
    assert choices.choose("which", CPU, two, default="left") == "right"
    assert choices.machine_key(CPU) in json.loads(cache.read_text())


def test_damaged_entries_are_measured_anew(cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text(json.dumps({choices.machine_key(CPU): {"which": {"answer": 3}}}))
    assert choices.choose("which", CPU, two, default="left") == "right"


def test_a_folder_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PEFTLAB_KERNEL_CHOICES", str(tmp_path / "file" / "choices.json"))
    assert choices.choose("which", CPU, two, default="left") == "right"
    assert choices.choose("which", CPU, never, default="left") == "right"


def test_a_replayed_answer_wins_over_the_clock_and_is_given_back(cache: Path) -> None:
    choices.choose("which", CPU, two, default="left")
    with choices.replay({"which": "left"}):
        assert choices.choose("which", CPU, never, default="right") == "left"
        assert choices.answers() == {"which": "left"}
    assert choices.choose("which", CPU, never, default="left") == "right"
    assert choices.answers() == {"which": "right"}


def test_off_takes_the_default(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTLAB_KERNEL_CHOICES", "off")
    assert choices.choose("which", CPU, never, default="left") == "left"
    assert choices.made()[0].source == "default"


def test_candidates_that_raise_are_left_out(cache: Path) -> None:
    def broken() -> object:
        raise RuntimeError("out of memory")

    assert choices.choose("a", CPU, lambda: {"left": broken, **two("x")}, default="x") == "right"
    assert choices.choose("b", CPU, lambda: {"left": broken}, default="x") == "x"
    assert "b" not in json.loads(cache.read_text())[choices.machine_key(CPU)]


def test_a_hopeless_candidate_runs_once(cache: Path) -> None:
    runs = []

    def slow() -> None:
        runs.append(1)
        time.sleep(0.05)

    choices.choose("which", CPU, lambda: {"slow": slow, "fast": lambda: None}, default="slow")
    assert len(runs) == 1


def test_the_cpu_s_arithmetic_is_measured_without_touching_the_generator(cache: Path) -> None:
    before = torch.get_rng_state()
    found = dispatch.eager_kernels(torch.zeros(2, 3, dtype=torch.bfloat16))
    assert torch.equal(before, torch.get_rng_state())
    asked = {choice.question: choice for choice in choices.made()}
    assert asked.keys() == {"bfloat16 x @ W.T", "bfloat16 dy @ W"}
    assert all(set(choice.seconds) == {"native", "fp32"} for choice in asked.values())
    assert found.forward_arithmetic == asked["bfloat16 x @ W.T"].answer
    assert found.backward_arithmetic == asked["bfloat16 dy @ W"].answer
    assert dispatch.eager_kernels(torch.zeros(2, 3)) == dispatch.EagerKernels()
