"""A merge that is killed, or runs out of disk, leaves a whole model or none."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from peftlab.errors import CheckFailed
from peftlab.export.merge import merge

from .adapters import Made

REPOSITORY = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.poison_empty(False),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

KILLER = '''
"""Forks a worker that has everything imported, kills it at a random moment, and looks."""
import json, os, random, shutil, signal, sys, time, warnings
from pathlib import Path

warnings.simplefilter("ignore")
import torch
from peftlab.export.merge import merge
from peftlab.export.safetensors_files import stored_in

torch.set_num_threads(1)
adapter, base, out, kills = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
started = time.monotonic()
merge(adapter, out, base=base)
whole = time.monotonic() - started
expected = {name: t.size for name, t in stored_in(sorted(out.glob("*.safetensors"))).items()}
names = sorted(file.name for file in out.iterdir())
shutil.rmtree(out)
draw = random.Random(5)
outcomes = []
for _ in range(kills):
    worker = os.fork()
    if worker == 0:
        try:
            merge(adapter, out, base=base)
        finally:
            os._exit(0)
    time.sleep(draw.uniform(0, 1.1 * whole))
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    if not out.exists():
        outcomes.append("nothing")
        continue
    stored = {name: t.size for name, t in stored_in(sorted(out.glob("*.safetensors"))).items()}
    whole_now = stored == expected and sorted(f.name for f in out.iterdir()) == names
    outcomes.append("whole" if whole_now else "half")
    shutil.rmtree(out)
left = [p.name for p in out.parent.iterdir() if "unfinished" in p.name]
merge(adapter, out, base=base)
after = [p.name for p in out.parent.iterdir() if "unfinished" in p.name]
print(json.dumps({"outcomes": outcomes, "left": left, "after": after}))
'''


def test_thirty_kills_never_leave_half_a_model(tmp_path: Path) -> None:
    made = Made(tmp_path, "llama", shards="20KB", target_modules="all-linear")
    done = subprocess.run(
        [sys.executable, "-c", KILLER, made.adapter, made.base, made.out, "30"],
        cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": f".{os.pathsep}kernels"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert len(result["outcomes"]) == 30
    assert "half" not in result["outcomes"]
    assert result["outcomes"].count("nothing") >= 10
    assert len(result["left"]) <= 1  # each export removes what a killed one left
    assert result["after"] == []


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
    script = f"""
import resource, signal, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from peftlab.export.merge import merge
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
merge(Path({str(made.adapter)!r}), Path({str(made.out)!r}), base={str(made.base)!r})
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": f".{os.pathsep}kernels"},
    )  # fmt: skip
    assert done.returncode == 1
    assert "File too large" in done.stderr.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]
