"""The folder of a bench on disk: which one may be used, and which files in it are the bench's own.

BENCH/
  results.json             written first: marks the folder, names the runs, holds the rows so far
  results.md, report.html  the reports
  runs/NAME/               one run folder a row and seed
  logs/NAME.log            what each job printed

`runs/` is also where `train` puts runs, so nothing is deleted but what results.json names.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftlab.errors import ConfigError
from peftlab.files import replacing

RESULTS = "results.json"
RUNS = "runs"
LOGS = "logs"
UNTUNED = "untuned"
_REPORTS = ("results.md", "report.html", f"{RESULTS}.partial")
# What a run has in its name while it is made, locked, or put in the place of an earlier one.
_RUN_SUFFIXES = ("", ".unfinished", ".unfinished.lock", ".replaced")
_LOG_SUFFIXES = (".log", ".reply", ".reply.partial")


@dataclass(frozen=True, slots=True)
class BenchFolder:
    """A folder that this bench may write to; `runs` are the names of its run folders."""

    path: Path
    runs: tuple[str, ...]
    made: tuple[Path, ...]

    def log(self, name: str) -> Path:
        """The file for a job's output."""
        return self.path / LOGS / f"{name}.log"

    def write(self, result: Mapping[str, Any]) -> None:
        """Replace results.json in one step."""
        with replacing(self.path / RESULTS) as partial:
            partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    def clear_unfinished(self) -> None:
        """Remove what runs that were stopped leave: staging folders and the locks beside them."""
        _delete(self.path / RUNS / f"{n}{s}" for n in self.runs for s in _RUN_SUFFIXES if s)

    def remove(self) -> None:
        """Leave nothing of this bench behind, and everything else."""
        _remove_bench(self.path, self.runs)
        for folder in self.made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def claim(path: Path, runs: Iterable[str], *, overwrite: bool) -> BenchFolder:
    """Take `path` for a bench with these runs, clearing away an earlier bench there.

    Nothing is written yet but the folder itself. Raises `ConfigError` where `path` holds something
    else, a finished bench and not `overwrite`, or a run of that name that is not the bench's.
    """
    runs = tuple(runs)
    previous = _check_free(path, overwrite=overwrite)
    for name in runs:
        if name not in previous and (path / RUNS / name).exists():
            raise ConfigError(
                f"{path / RUNS / name} is there and is not this bench's; "
                "choose another folder, or move it away."
            )
    if path.is_dir() and any(path.iterdir()):
        _remove_bench(path, previous)
    made = tuple(p for p in (path, *path.parents) if not p.exists())
    path.mkdir(parents=True, exist_ok=True)
    return BenchFolder(path, runs, made)


def _check_free(path: Path, *, overwrite: bool) -> frozenset[str]:
    """The names of the runs of the earlier bench in `path`; `ConfigError` where it is taken."""
    if path.exists() and not path.is_dir():
        raise ConfigError(f"The bench's folder is {path}, which is a file; choose another.")
    if not path.is_dir() or not any(path.iterdir()):
        return frozenset()
    previous = _read(path / RESULTS)
    if previous is None:
        raise ConfigError(
            f"The bench's folder is {path}, which holds files that are no bench; choose another."
        )
    if previous["complete"] and not overwrite:
        raise ConfigError(
            f"The bench's folder is {path}, which holds a finished bench; choose another, "
            "or set output.overwrite=true to replace it."
        )
    return frozenset(_runs_of(previous))


def _read(results: Path) -> dict[str, Any] | None:
    """A bench's results, or None where the file is missing or something else."""
    try:
        content = json.loads(results.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    is_bench = isinstance(content.get("rows"), list) and isinstance(content.get("complete"), bool)
    return content if is_bench else None


def _runs_of(results: Mapping[str, Any]) -> Iterator[str]:
    """The run folders that a results.json names, in `runs` where they were planned."""
    named = results.get("runs")
    for name in named if isinstance(named, list) else []:
        # A plain name: a path would lead out of the folder.
        if isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name:
            yield name


def _remove_bench(path: Path, runs: Iterable[str]) -> None:
    names = tuple(runs)
    logs = path / LOGS
    _delete(path / RUNS / f"{name}{suffix}" for name in names for suffix in _RUN_SUFFIXES)
    _delete(logs / f"{n}{s}" for n in (*names, UNTUNED, "worker") for s in _LOG_SUFFIXES)
    _delete(path / name for name in (*_REPORTS, RESULTS))
    for folder in (path / RUNS, logs):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _delete(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
