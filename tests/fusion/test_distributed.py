"""Data parallel training in two processes: the mean gradients of plain PEFT in one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hanging import HANGS_AFTER

REPOSITORY = Path(__file__).resolve().parents[2]
LAYERS = 14


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The output of the first process of `two_processes.py` for each kind of training."""
    store = tmp_path_factory.mktemp("distributed") / "store"
    script = REPOSITORY / "tests" / "fusion" / "two_processes.py"
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'kernels'}"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(store)],
            env=environment,
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        printed = [process.communicate(timeout=HANGS_AFTER) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, error) in zip(processes, printed, strict=True):
        assert process.returncode == 0, error[-3000:]
    said: dict[str, dict[str, Any]] = json.loads(printed[0][0])
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
