"""Measured choices: made once, kept on disk for this machine, replayed, or switched off."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch

from peftlab_kernels import autotune
from peftlab_kernels.backends import eager_kernels
from peftlab_kernels.eager import cpu_arithmetic
from peftlab_kernels.eager.backend import EagerKernels

CPU = torch.device("cpu")
Candidates = Mapping[str, Callable[[], object]]


class Clock:
    """Stands for `time`: what sleeps takes as long as it says, all else a microsecond."""

    now = 0.0

    def perf_counter(self) -> float:
        self.now += 1e-6
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


CLOCK = Clock()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer depends on how busy this machine is."""
    monkeypatch.setattr(autotune, "time", CLOCK)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache file in use; nothing remembered before or after."""
    file = tmp_path / "deep" / "autotune.json"
    monkeypatch.setenv("PEFTLAB_KERNEL_CHOICES", str(file))
    autotune.forget()
    yield file
    autotune.forget()


def two(slow: str = "left", fast: str = "right") -> Candidates:
    return {slow: lambda: CLOCK.sleep(0.01), fast: lambda: None}


def never() -> Candidates:
    raise AssertionError("measured again")


def test_the_fastest_is_chosen_and_kept_for_the_next_process(cache: Path) -> None:
    assert autotune.choose("which", CPU, two, default="left") == "right"
    assert autotune.choose("which", CPU, never, default="left") == "right"
    (made,) = autotune.made()
    assert (made.question, made.answer, made.source) == ("which", "right", "measured")
    assert made.seconds["left"] > made.seconds["right"]
    autotune.forget()
    assert autotune.choose("which", CPU, never, default="left") == "right"
    assert autotune.made()[0].source == "kept"


def test_another_number_of_threads_is_another_machine(cache: Path) -> None:
    autotune.choose("which", CPU, two, default="left")
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        swapped = autotune.choose("which", CPU, lambda: two("right", "left"), default="left")
    finally:
        torch.set_num_threads(threads)
    assert swapped == "left"
    assert autotune.choose("which", CPU, never, default="left") == "right"
    assert len(json.loads(cache.read_text())) == 2


def test_a_processor_held_to_less_is_another_machine(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    whole = autotune.machine_key(CPU)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert autotune.machine_key(CPU) != whole


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"x": 3}', "\x00"])
def test_a_damaged_file_is_measured_anew(cache: Path, content: str) -> None:
    cache.parent.mkdir()
    cache.write_text(content)
    assert autotune.choose("which", CPU, two, default="left") == "right"
    assert autotune.machine_key(CPU) in json.loads(cache.read_text())


@pytest.mark.parametrize(
    "entry",
    [
        {"answer": 3, "seconds": {}}, {"answer": "left"}, {"answer": "left", "seconds": 3},
        {"answer": "left", "seconds": {"left": "soon"}},
    ],
)  # fmt: skip
def test_damaged_entries_are_measured_anew(cache: Path, entry: dict[str, object]) -> None:
    cache.parent.mkdir()
    cache.write_text(json.dumps({autotune.machine_key(CPU): {"which": entry}}))
    assert autotune.choose("which", CPU, two, default="left") == "right"


def test_a_folder_in_the_file_s_place_is_no_error_and_nothing_is_left_beside_it(
    cache: Path,
) -> None:
    (cache / "taken").mkdir(parents=True)
    assert autotune.choose("which", CPU, two, default="left") == "right"
    assert list(cache.parent.iterdir()) == [cache]


def test_a_folder_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PEFTLAB_KERNEL_CHOICES", str(tmp_path / "file" / "autotune.json"))
    assert autotune.choose("which", CPU, two, default="left") == "right"
    assert autotune.choose("which", CPU, never, default="left") == "right"


def test_a_replayed_answer_wins_over_the_clock_and_is_given_back(cache: Path) -> None:
    autotune.choose("which", CPU, two, default="left")
    with autotune.replay({"which": "left"}):
        assert autotune.choose("which", CPU, never, default="right") == "left"
        assert autotune.answers() == {"which": "left"}
    assert autotune.choose("which", CPU, never, default="left") == "right"
    assert autotune.answers() == {"which": "right"}


def test_off_takes_the_default(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTLAB_KERNEL_CHOICES", "off")
    assert autotune.choose("which", CPU, never, default="left") == "left"
    assert autotune.made()[0].source == "default"


def test_candidates_that_raise_are_left_out(cache: Path) -> None:
    def broken() -> object:
        raise RuntimeError("out of memory")

    assert autotune.choose("a", CPU, lambda: {"left": broken, **two("x")}, default="x") == "right"
    assert autotune.choose("b", CPU, lambda: {"left": broken}, default="x") == "x"

    class OutOfResources(Exception):
        """As Triton's, which is no RuntimeError."""

    def too_large() -> object:
        raise OutOfResources("shared memory")

    assert autotune.choose("c", CPU, lambda: {"left": too_large, **two("x")}, "x") == "right"
    assert "b" not in json.loads(cache.read_text())[autotune.machine_key(CPU)]


def test_a_hopeless_candidate_runs_once(cache: Path) -> None:
    runs = []

    def slow() -> None:
        runs.append(1)
        CLOCK.sleep(0.05)

    autotune.choose("which", CPU, lambda: {"slow": slow, "fast": lambda: None}, default="slow")
    assert len(runs) == 1


def test_the_time_of_compiling_kernels_makes_no_candidate_hopeless(cache: Path) -> None:
    runs = []

    def compiled_at_first() -> None:
        runs.append(1)
        if len(runs) == 1:
            CLOCK.sleep(0.2)

    candidates = {"ready": lambda: CLOCK.sleep(0.01), "compiled": compiled_at_first}
    device = torch.device("mps")  # none is needed: any that is no CPU
    assert autotune.choose("which", device, lambda: candidates, default="ready") == "compiled"


def test_measuring_leaves_the_generator_as_it_was(cache: Path) -> None:
    before = torch.get_rng_state()
    autotune.choose("which", CPU, lambda: {"left": lambda: torch.rand(3)}, default="left")
    assert autotune.made()[0].source == "measured"
    assert torch.equal(torch.get_rng_state(), before)


def test_replays_of_two_threads_end_in_any_order(cache: Path) -> None:
    def asked() -> str:
        return autotune.choose("which", CPU, two, default="left")

    first, second = autotune.replay({"which": "first"}), autotune.replay({"which": "second"})
    first.__enter__()
    second.__enter__()
    assert asked() == "second"
    first.__exit__(None, None, None)
    assert asked() == "second"
    second.__exit__(None, None, None)
    assert asked() == "right"


def test_a_callback_gets_every_choice_from_then_on(cache: Path) -> None:
    autotune.choose("before", CPU, two, default="left")
    autotune.choose("which", CPU, two, default="left")
    heard: dict[str, str] = {}
    with autotune.on_choice(heard.__setitem__):
        autotune.choose("which", CPU, never, default="left")
        with autotune.replay({"which": "left"}):
            autotune.choose("which", CPU, never, default="left")
            assert heard == {"which": "left"}
    autotune.choose("before", CPU, never, default="left")
    assert heard == {"which": "left"}


def test_a_user_without_a_home_keeps_answers_among_temporary_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a container that runs under a number without a name."""
    monkeypatch.delenv("PEFTLAB_KERNEL_CHOICES")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert autotune.cache_file().is_relative_to(tempfile.gettempdir())
    monkeypatch.setenv("PEFTLAB_KERNEL_CHOICES", "~/autotune.json")
    with pytest.raises(ValueError, match=r"PEFTLAB_KERNEL_CHOICES is ~/autotune.json.*or off"):
        autotune.cache_file()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_another_default_device_is_not_what_is_measured(cache: Path, dtype: torch.dtype) -> None:
    with torch.device("meta"):
        candidates = cpu_arithmetic._candidates(dtype, "x @ W.T") | cpu_arithmetic._candidates(
            dtype, "dy @ W"
        )
        for run in candidates.values():
            product = run()
            assert isinstance(product, torch.Tensor)
            assert product.device == CPU


def test_the_cpu_s_arithmetic_is_measured_without_touching_the_generator(cache: Path) -> None:
    before = torch.get_rng_state()
    kernels = eager_kernels(torch.zeros(2, 3, dtype=torch.bfloat16))
    assert torch.equal(before, torch.get_rng_state())
    choices = {choice.question: choice for choice in autotune.made()}
    assert choices.keys() == {"bfloat16 x @ W.T", "bfloat16 dy @ W"}
    assert all(set(choice.seconds) == {"native", "fp32"} for choice in choices.values())
    assert kernels.forward_arithmetic == choices["bfloat16 x @ W.T"].answer
    assert kernels.backward_arithmetic == choices["bfloat16 dy @ W"].answer
    assert eager_kernels(torch.zeros(2, 3)) == EagerKernels()
