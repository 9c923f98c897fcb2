"""The allocator keeps large buffers: seen as page faults that no longer happen."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROBE = """
import resource, sys
from peftlab.measure.allocator import keep_large_buffers
if sys.argv[1] == "on":
    assert keep_large_buffers() and keep_large_buffers()
def churn():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        # 8 MB, written: below Python's own pools nothing is this large, so malloc serves it.
        buffer = bytearray(8 << 20)
        buffer[:] = b"x" * len(buffer)
        del buffer
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
churn()
print(churn())
"""


def faults(switch: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, switch], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_large_buffers_are_reused() -> None:
    assert faults("on") < 0.2 * max(faults("off"), 1000)


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from peftlab.measure.allocator import keep_large_buffers

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_large_buffers() is False
