"""Peak memory counts what is allocated and touched, keeps the maximum, and splits it by part."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from peftlab.measure import memory as memory_module
from peftlab.measure.allocator import keep_large_buffers
from peftlab.measure.memory import (
    PeakMemory,
    anonymous_memory,
    breakdown,
    gradient_bytes,
    mapped_weights,
    optimizer_bytes,
    tensor_bytes,
    weight_bytes,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
MB = 10**6


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What every look at this process's memory has read so far."""
    read = list[int]()
    real = memory_module._anonymous

    def look(status: bytes) -> int:
        read.append(real(status))
        return read[-1]

    monkeypatch.setattr(memory_module, "_anonymous", look)
    return read


def touched(size: int) -> Any:
    """A buffer of `size` bytes, every page of it written."""
    return np.ones(size, dtype=np.uint8)


@linux
def test_it_sees_an_allocation_and_remembers_it() -> None:
    with PeakMemory() as memory:
        buffer = touched(200 * MB)
        assert memory.peak == pytest.approx(200 * MB, abs=5 * MB)
        del buffer
        time.sleep(0.05)
        second = touched(50 * MB)
        del second
    assert memory.peak == pytest.approx(200 * MB, abs=5 * MB)
    later = touched(300 * MB)
    assert memory.peak == pytest.approx(200 * MB, abs=5 * MB)
    del later


@linux
def test_it_sees_a_buffer_that_lives_between_two_looks(looks: list[int]) -> None:
    """Only the sampling thread can: `peak` is not read while the buffer is alive."""
    with PeakMemory() as memory:
        before = looks[-1]
        buffer = touched(200 * MB)
        while max(looks) < before + 195 * MB:  # until the thread has had its turn
            time.sleep(0.01)
        del buffer
    assert memory.peak == pytest.approx(200 * MB, abs=5 * MB)
    assert not any(thread.name == "peak-memory" for thread in threading.enumerate())


@linux
def test_freed_heap_is_not_a_place_to_hide() -> None:
    """Memory that an earlier run left in the allocator's lists counts when it is used again."""
    keep_large_buffers()
    for _ in range(2):
        with PeakMemory() as memory:
            buffer = touched(200 * MB)
            assert memory.peak == pytest.approx(200 * MB, abs=5 * MB)
            del buffer
        assert memory.peak == pytest.approx(200 * MB, abs=5 * MB)


@linux
def test_untouched_and_mapped_memory_does_not_count(tmp_path: Any) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"\1" * (50 * MB))
    with PeakMemory() as memory:
        mapped = np.memmap(path, mode="r")
        assert int(mapped[::4096].sum()) > 0
        reserved = np.empty(200 * MB, dtype=np.uint8)
        time.sleep(0.02)
        del reserved
    assert memory.peak < 5 * MB
    assert anonymous_memory() > 0


@linux
def test_it_costs_little(looks: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty looks a second, each of them one read of a small file."""
    slept = list[float]()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        time.sleep(0.001)

    monkeypatch.setattr("peftlab.measure.memory.time", SimpleNamespace(sleep=sleep))
    with PeakMemory():
        while len(slept) < 20:
            time.sleep(0.001)
    assert set(slept) == {0.02}
    # Beside the thread's, one look on entry and one on exit.
    assert len(looks) <= len(slept) + 2


def test_an_error_passes_through() -> None:
    memory = PeakMemory()
    with pytest.raises(ZeroDivisionError), memory:
        _ = 1 / 0
    assert not any(thread.name == "peak-memory" for thread in threading.enumerate())


def test_parts_of_a_model() -> None:
    model = nn.Sequential(nn.Linear(10, 20, bias=False), nn.Linear(20, 10, bias=False))
    model[1].weight = nn.Parameter(model[0].weight.detach().T)
    # A view of the same storage counts once, whole.
    assert weight_bytes(model) == 800
    assert tensor_bytes([model[0].weight, model[0].weight[:1]]) == 800
    model[0].weight.requires_grad_(False)
    assert gradient_bytes(model) == 800
    optimizer = torch.optim.AdamW([model[1].weight])
    model(torch.ones(1, 10)).sum().backward()
    optimizer.step()
    assert optimizer_bytes(optimizer) == pytest.approx(1600, abs=8)


def test_int8_weights_count_with_their_scales() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    layer = bitsandbytes.nn.Linear8bitLt(64, 32, bias=False, has_fp16_weights=False)
    layer.load_state_dict({"weight": torch.randn(32, 64)})
    layer = layer.to("cpu")
    expected = 32 * 64 + 4 * 32
    sizes = [weight_bytes(layer)]
    layer.eval()
    with torch.no_grad():
        layer(torch.randn(4, 64))
    sizes.append(weight_bytes(layer))
    assert sizes == [expected, expected]


def test_breakdown() -> None:
    parts = breakdown(100, weights=40, gradients=10, optimizer=20)
    assert (parts.total, parts.activations) == (100, 30)
    # Mapped weights were never measured; the total is at least what is known.
    parts = breakdown(50, weights=40, gradients=10, optimizer=20)
    assert (parts.total, parts.activations) == (70, 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_peak() -> None:
    device = torch.device("cuda")
    with PeakMemory(device=device) as memory:
        buffer = torch.ones(200 * MB, dtype=torch.uint8, device=device)
        del buffer
    assert memory.peak == pytest.approx(200 * MB, abs=3 * MB)


def test_mapped_weights_count_until_they_are_written_to(tmp_path: Path) -> None:
    """Also behind the hub cache's link to a blob, whose own name has no ending."""
    from safetensors.torch import load_file, save_file

    size = 64 << 20
    blob = tmp_path / "blobs" / "0123abcd"
    blob.parent.mkdir()
    save_file({"weight": torch.ones(1024, size // 4096)}, blob)
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    model = nn.Linear(size // 4096, 1024, bias=False)
    assert mapped_weights(model) == 0
    weight = load_file(link)["weight"]
    assert mapped_weights(model) == 0  # another's mapping
    model.weight = nn.Parameter(weight, requires_grad=False)
    assert mapped_weights(model) == pytest.approx(size, rel=0.01)
    model.weight.mul_(2.0)
    assert mapped_weights(model) < size // 10
