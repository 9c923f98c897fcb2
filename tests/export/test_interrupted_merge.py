"""A merge that is killed, or runs out of disk, leaves a whole model or none."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from peftlab.errors import CheckFailed
from peftlab.export.merge import merge
from peftlab.export.safetensors_files import stored_in
from tests.forked import forked

from .adapters import Made

pytestmark = [
    pytest.mark.poison_empty(False),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def calls_of(run: Callable[[], object], limit: int = 0) -> int:
    """How many Python functions `run` calls; at the call `limit` the process kills itself."""
    calls = 0

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal calls
        calls += event == "call"
        if calls == limit:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("kills", [10, pytest.param(60, marks=pytest.mark.campaign)])
def test_kills_never_leave_half_a_model(kills: int, tmp_path: Path) -> None:
    """At random calls: no clock decides how far an export has come."""
    made = Made(tmp_path, "llama", shards="20KB", target_modules="all-linear")
    out = made.out

    def export() -> None:
        merge(made.adapter, out, base=str(made.base))

    def sizes() -> dict[str, int]:
        return {name: t.size for name, t in stored_in(sorted(out.glob("*.safetensors"))).items()}

    def unfinished() -> list[str]:
        return [path.name for path in out.parent.iterdir() if "unfinished" in path.name]

    export()
    expected, names = sizes(), sorted(file.name for file in out.iterdir())
    shutil.rmtree(out)
    calls = calls_of(export)
    shutil.rmtree(out)
    draw, outcomes = random.Random(5), []
    for _ in range(kills):
        at = draw.randrange(1, int(1.1 * calls))
        ended = forked(lambda at=at: calls_of(export, at) and 0)
        assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
        if not out.exists():
            outcomes.append("nothing")
            continue
        whole = sizes() == expected and sorted(f.name for f in out.iterdir()) == names
        outcomes.append("whole" if whole else "half")
        shutil.rmtree(out)
    assert "half" not in outcomes
    assert outcomes.count("nothing") >= kills // 3
    assert len(unfinished()) <= 1  # each export removes what a killed one left
    export()
    assert unfinished() == []


def test_a_full_disk_is_reported_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(tmp_path, "llama", target_modules=["q_proj"])
    out = tmp_path / "new" / "out"

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("peftlab.export.safetensors_files.Writer._write_all", full)
    with pytest.raises(CheckFailed, match=r"disk of .*new is full \(\d+ MiB are free now"):
        merge(made.adapter, out, base=str(made.base))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_a_disk_that_fills_up_in_the_middle(tmp_path: Path) -> None:
    """By the limit of the process: a real write fails with fewer bytes written than requested."""
    made = Made(tmp_path, "llama", target_modules=["q_proj"])

    def export() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
        merge(made.adapter, made.out, base=str(made.base))

    done = forked(export)
    assert done.returncode == 1
    assert "File too large" in done.stderr.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]
