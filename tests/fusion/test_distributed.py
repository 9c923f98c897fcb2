"""Data parallel training in two processes: the mean gradients of plain PEFT in one process."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.forked import started

LAYERS = 14


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The output of the first process of `two_processes.py` for each kind of training."""
    from tests.fusion.two_processes import main

    store = str(tmp_path_factory.mktemp("distributed") / "store")
    with started(lambda: main(0, store)) as first, started(lambda: main(1, store)) as second:
        # The first waits for the second, and either gives up where the other is gone.
        printed = [first(), second()]
    for ended in printed:
        assert ended.returncode == 0, ended.stderr[-3000:]
    said: dict[str, dict[str, Any]] = json.loads(printed[0].stdout)
    return said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "calls", "outside", "inside"),
    [
        ("ddp", LAYERS, None, None),
        # Sharded between calls, whole while the block computes.
        ("fsdp2", LAYERS, "one of its tensors is a DTensor", None),
        # One flat tensor, which trains as a whole, is behind the frozen weights too.
        ("fsdp1", 0, None, "its base weight trains"),
    ],
)
def test_gradients(
    how: str, calls: int, outside: str | None, inside: str | None, reports: Any
) -> None:
    seen = reports[how]
    assert seen["missing"] == []
    assert seen["error"] < 1e-12
    assert (seen["calls"], seen["outside"], seen["inside"]) == (calls, outside, [inside])
