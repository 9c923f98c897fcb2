"""Launching by what was compiled, with a driver that launches nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from peftlab_kernels.triton import launching
from peftlab_kernels.triton.launching import Launch, descriptor, layout, planned


class Made:
    """What Triton's own launch returns: a compiled kernel."""

    packed_metadata = "metadata"
    function = 7

    def __init__(self) -> None:
        self.runs: list[tuple[Any, ...]] = []
        self.told: list[tuple[Any, ...]] = []

    def run(self, *arguments: Any) -> None:
        self.runs.append(arguments)

    def launch_metadata(self, *arguments: Any) -> str:
        self.told.append(arguments)
        return "told"


class Kernel:
    """A jitted kernel X, Y, M, seed, factor, BLOCK; every launch the whole way makes another."""

    __name__ = "kernel"

    def __init__(self, *, specialized: bool = False, constants_last: bool = True) -> None:
        names = ["X", "Y", "M", "seed", "factor", "BLOCK"]
        if not constants_last:
            names = ["BLOCK", *names[:-1]]
        self.params = [
            SimpleNamespace(
                name=name,
                is_constexpr=name == "BLOCK",
                do_not_specialize=name == "seed" and not specialized,
            )
            for name in names
        ]
        self.compiled: list[Made] = []
        self.calls: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, **constants: Any) -> Made:
            self.calls.append((grid, arguments, constants))
            self.compiled.append(Made())
            return self.compiled[-1]

        return launch


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Triton with nobody listening, on device 0 and its stream 3."""
    active = SimpleNamespace(
        device=0, get_current_device=lambda: active.device, get_current_stream=lambda device: 3
    )
    knobs = SimpleNamespace(runtime=SimpleNamespace(launch_enter_hook=None, launch_exit_hook=None))
    fake = SimpleNamespace(
        runtime=SimpleNamespace(driver=SimpleNamespace(active=active)), knobs=knobs
    )
    monkeypatch.setattr(launching, "triton", fake)
    monkeypatch.setattr(launching, "interpreting", lambda: False)
    return SimpleNamespace(active=active, runtime=knobs.runtime)


def aligned(*, off_by: int = 0) -> torch.Tensor:
    """Bytes at a 16-byte address, or so many after one."""
    room = torch.zeros(64, dtype=torch.uint8)
    start = -room.data_ptr() % 16 + off_by
    return room[start : start + 16]


def test_the_second_launch_hands_over_addresses_sizes_and_constants(driver: Any) -> None:
    kernel, x = Kernel(), aligned()
    launch = Launch(kernel, (5,), (33,), BLOCK=64, num_warps=4)
    launch((x, None), 8, 0.5)
    assert kernel.calls == [((5, 1, 1), (x, None, 33, 8, 0.5), {"BLOCK": 64, "num_warps": 4})]
    launch((x, None), 9, 0.25)
    assert len(kernel.calls) == 1
    (run,) = kernel.compiled[0].runs
    assert run == (
        5, 1, 1, 3, 7, "metadata", None, None, None, x.data_ptr(), None, 33, 9, 0.25, 64,
    )  # fmt: skip


def test_alignment_and_device_each_have_a_kernel_of_their_own(driver: Any) -> None:
    kernel = Kernel()
    launch = Launch(kernel, (1,), (33,), BLOCK=64)
    x, odd = aligned(), aligned(off_by=4)
    for pair in ((x, x), (x, odd), (odd, x), (odd, odd)):
        launch(pair, 1, 0.5)
    assert len(kernel.compiled) == 4
    launch((aligned(off_by=2), x), 1, 0.5)
    assert len(kernel.compiled) == 4  # how far off the address is does not matter
    assert len(kernel.compiled[2].runs) == 1
    driver.active.device = 1
    launch((x, x), 1, 0.5)
    assert len(kernel.compiled) == 5


def test_a_profiler_is_told_of_every_launch(driver: Any) -> None:
    kernel, x = Kernel(), aligned()
    launch = Launch(kernel, (1, 2), (33,), BLOCK=64)
    launch((x, x), 1, 0.5)
    driver.runtime.launch_enter_hook = SimpleNamespace(calls=["a profiler"])
    launch((x, x), 2, 0.5)
    made = kernel.compiled[0]
    assert made.told == [((1, 2, 1), 3, x.data_ptr(), x.data_ptr(), 33, 2, 0.5, 64)]
    assert made.runs[0][6:9] == ("told", driver.runtime.launch_enter_hook, None)
    driver.runtime.launch_enter_hook = SimpleNamespace(calls=[])
    launch((x, x), 3, 0.5)
    assert made.runs[1][6:9] == (None, None, None)


def test_a_number_that_changes_must_not_be_looked_at_by_the_compiler(driver: Any) -> None:
    launch = Launch(Kernel(specialized=True), (1,), (33,), BLOCK=64)
    with pytest.raises(TypeError, match="seed of kernel changes"):
        launch((aligned(), None), 1, 0.5)


def test_constants_come_last(driver: Any) -> None:
    launch = Launch(Kernel(constants_last=False), (1,), (33,), BLOCK=64)
    with pytest.raises(TypeError, match="constants of kernel must come after"):
        launch((aligned(), None), 1, 0.5)


def test_what_cannot_be_launched_again_is_not_kept(driver: Any) -> None:
    """As where a kernel is only compiled, or Triton returns nothing."""
    calls: list[Any] = []

    class Silent(Kernel):
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *arguments, **constants: calls.append(arguments)

    launch = Launch(Silent(), (1,), (33,), BLOCK=64)
    for _ in range(2):
        launch((aligned(), None), 1, 0.5)
    assert len(calls) == 2


def test_a_descriptor_is_what_its_constructor_makes(driver: Any) -> None:
    from triton.tools.tensor_descriptor import TensorDescriptor

    matrix = torch.zeros(48, 64, dtype=torch.bfloat16)[:, :32]
    quick = descriptor(matrix, layout(matrix.shape, matrix.stride(), (16, 32)))
    slow = TensorDescriptor.from_tensor(matrix, [16, 32])
    assert quick.base is matrix
    for name in ("shape", "strides", "block_shape", "padding"):
        assert (name, list(getattr(quick, name))) == (name, list(getattr(slow, name)))
    assert vars(quick).keys() == vars(slow).keys()


def test_a_plan_is_made_once_and_can_be_forgotten() -> None:
    made = []

    @planned
    def plan(size: int) -> object:
        made.append(size)
        return object()

    try:
        first = plan(3)
        assert plan(3) is first
        assert plan(4) is not first
        launching.forget()
        assert plan(3) is not first
        assert made == [3, 4, 3]
    finally:
        launching._planners.remove(plan)
