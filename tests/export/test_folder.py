"""A merged model's folder is there whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from peftlab.errors import CheckFailed, ConfigError
from peftlab.export.folder import appearing, check_output
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
    found = {name: t.size for name, t in stored_in(sorted(out.glob("*.safetensors"))).items()}
    whole_now = found == expected and sorted(f.name for f in out.iterdir()) == names
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
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["outcomes"]) == 30
    assert "half" not in found["outcomes"]
    assert found["outcomes"].count("nothing") >= 10
    assert len(found["left"]) <= 1  # each export removes what a killed one left
    assert found["after"] == []


def test_a_full_disk_is_told_and_leaves_nothing(
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
    """By the limit of the process: a real write fails with fewer bytes written than asked."""
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


def test_folders_that_cannot_be_written_are_refused_first(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("x")
    file = tmp_path / "file"
    file.write_text("x")
    for path, said in (
        (taken, "is not empty"),
        (file, "is a file"),
        (file / "below", "is not writable"),
    ):
        with pytest.raises(ConfigError, match=said):
            check_output(path)
    check_output(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()


def test_an_empty_folder_is_taken_over_and_permissions_are_the_users(tmp_path: Path) -> None:
    final = tmp_path / "out"
    final.mkdir()
    with appearing(final) as folder:
        assert folder.parent == tmp_path
        (folder / "a").write_text("1")
        assert list(final.iterdir()) == []
    assert [path.name for path in final.iterdir()] == ["a"]
    mask = os.umask(0)
    os.umask(mask)
    assert final.stat().st_mode & 0o777 == 0o777 & ~mask


def test_a_failure_removes_what_it_made_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()

    def stopped() -> None:
        with appearing(tmp_path / "old" / "x" / "out") as folder:
            (folder / "a").write_text("1")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stopped()
    assert list(tmp_path.rglob("*")) == [tmp_path / "old"]


def test_only_the_dead_are_cleared_away(tmp_path: Path) -> None:
    """A sibling of a process that still runs is another export's."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = {
        "dead": f".out.unfinished-{dead.pid}-a",
        "alive": f".out.unfinished-{os.getppid()}-b",
        "other": f".other.unfinished-{dead.pid}-c",
    }
    for name in names.values():
        (tmp_path / name).mkdir()
    with appearing(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"out", names["alive"], names["other"]}
