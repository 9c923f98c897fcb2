"""Autotuning: which of several equivalent implementations is fastest, measured once and cached.

A question is a string such as "bfloat16 x @ W.T"; its candidates compute the same result in the
same precision class, so that time alone may decide between them. An answer holds for one device,
torch version and number of threads, which together are the machine's key in the cache file.

A run keeps its answers and replays them. `PEFTLAB_KERNEL_CHOICES` names another cache file, or is
`off`: every question then gets its default.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import RLock
from typing import Any, Literal

import torch

logger = logging.getLogger("peftlab.kernels")

VARIABLE = "PEFTLAB_KERNEL_CHOICES"
_ROUNDS = 3
_HOPELESS = 10.0
"""A candidate this many times slower than the fastest is dropped after its first run."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One question's answer, with each candidate's median seconds where it was measured."""

    question: str
    answer: str
    source: Literal["measured", "kept", "replayed", "default"]
    seconds: Mapping[str, float]


_made: dict[str, Choice] = {}
"""The latest answer to each question."""
_remembered: dict[tuple[str, str], Choice] = {}
"""Measured or read for (machine, question), so that the file is read once."""
_replayed: list[Mapping[str, str]] = []
"""The answers of each open `replay`, the latest last."""
_listeners: list[Callable[[str, str], None]] = []
"""The callbacks of `on_choice`, called with each question and its answer."""
_quick: dict[tuple[str, torch.device, tuple[str | None, int]], str] = {}
"""Current answers, since every call of every layer needs one; cleared when those above change."""
_lock = RLock()


def choose(
    question: str,
    device: torch.device,
    candidates: Callable[[], Mapping[str, Callable[[], object]]],
    default: str,
) -> str:
    """The name of the fastest candidate; `candidates` is called only to time them.

    A candidate that raises is left out; where all do, the answer is `default` and is not cached.
    """
    state = (os.environ.get(VARIABLE), torch.get_num_threads())
    quick = _quick.get((question, device, state))
    if quick is not None:
        return quick
    with _lock:
        kept = next((given for given in reversed(_replayed) if question in given), None)
        if kept is not None:
            choice = Choice(question, kept[question], "replayed", {})
        elif os.environ.get(VARIABLE) == "off":
            choice = Choice(question, default, "default", {})
        else:
            choice = _look_up(question, device, candidates, default)
        _made[question] = choice
        _quick[question, device, state] = choice.answer
        for listener in _listeners:
            listener(question, choice.answer)
        return choice.answer


def made() -> tuple[Choice, ...]:
    """The choices this process has made so far, by question."""
    with _lock:
        return tuple(_made[question] for question in sorted(_made))


def answers() -> dict[str, str]:
    """The answers alone, as `replay` takes them."""
    return {choice.question: choice.answer for choice in made()}


@contextmanager
def replay(kept: Mapping[str, str]) -> Iterator[None]:
    """Give these answers inside the `with`, whatever would be measured here."""
    with _among(_replayed, dict(kept)):
        yield


@contextmanager
def on_choice(listener: Callable[[str, str], None]) -> Iterator[None]:
    """Call `listener` with each question and its answer, at least when it is first answered."""
    with _among(_listeners, listener):
        yield


@contextmanager
def _among(entries: list[Any], entry: object) -> Iterator[None]:
    """Keep the entry in the list inside the `with`; other threads may change it meanwhile."""
    with _lock:
        entries.append(entry)
        _quick.clear()
    try:
        yield
    finally:
        with _lock:
            entries[:] = [other for other in entries if other is not entry]
            _quick.clear()


def forget() -> None:
    """Clear what this process remembers; the file stays."""
    with _lock:
        _made.clear()
        _remembered.clear()
        _quick.clear()


def onednn_limit() -> str | None:
    """The instruction set that the user limits oneDNN to, in capitals; either variable sets it."""
    named = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA")
    return named.upper() if named else None


def machine_key(device: torch.device) -> str:
    """Device, torch version and number of threads, for which an answer holds."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    if device.type == "cpu":
        capability = torch.backends.cpu.get_cpu_capability()
        if limit := onednn_limit():
            capability += f", oneDNN up to {limit}"
        return (
            f"{_cpu_model()} ({capability}), torch {torch.__version__}, "
            f"{torch.get_num_threads()} threads"
        )
    return f"{device.type}, torch {torch.__version__}"


def cache_file() -> Path:
    """The file that caches answers between processes.

    It lies in the folder for temporary files where the user has no home, as in some containers.
    """
    named = os.environ.get(VARIABLE)
    if named and named != "off":
        return _expanded(Path(named))
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:
        root = Path(tempfile.gettempdir())
    return root / "peftlab" / "kernel_choices.json"


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{VARIABLE} is {path}, and {error}; name another file, or off") from None


def _look_up(
    question: str,
    device: torch.device,
    candidates: Callable[[], Mapping[str, Callable[[], object]]],
    default: str,
) -> Choice:
    machine = machine_key(device)
    if (machine, question) in _remembered:
        return _remembered[machine, question]
    kept = _read(cache_file()).get(machine, {}).get(question)
    if kept is not None and _is_kept(kept):
        choice = Choice(question, kept["answer"], "kept", kept["seconds"])
    elif seconds := _time(candidates, device):
        fastest = min(seconds, key=lambda name: seconds[name])
        choice = Choice(question, fastest, "measured", seconds)
        _keep(cache_file(), machine, question, {"answer": fastest, "seconds": seconds})
    else:
        choice = Choice(question, default, "default", {})
    _remembered[machine, question] = choice
    return choice


def _time(
    candidates: Callable[[], Mapping[str, Callable[[], object]]], device: torch.device
) -> dict[str, float]:
    """Median seconds of each candidate, interleaved, so that a busy moment affects all alike.

    Torch's generators are restored: a run that measures draws the same numbers as one that does
    not.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        return _time_interleaved(candidates(), device)


def _time_interleaved(
    candidates: Mapping[str, Callable[[], object]], device: torch.device
) -> dict[str, float]:
    if device.type != "cpu":
        # Compiled here, so that compilation does not count as a candidate's time.
        candidates = {n: run for n, run in candidates.items() if _once(run, device) is not None}
    first = {name: _once(run, device) for name, run in candidates.items()}
    seconds = {name: [once] for name, once in first.items() if once is not None}
    best = min((times[0] for times in seconds.values()), default=0.0)
    repeated = [name for name, times in seconds.items() if times[0] <= _HOPELESS * best]
    for name in repeated:
        seconds[name].clear()  # the first run warmed up
    for _ in range(_ROUNDS):
        for name in repeated:
            if (once := _once(candidates[name], device)) is not None:
                seconds[name].append(once)
    return {name: statistics.median(times) for name, times in seconds.items() if times}


def _once(run: Callable[[], object], device: torch.device) -> float | None:
    try:
        _wait(device)
        started = time.perf_counter()
        run()
        _wait(device)
        return time.perf_counter() - started
    except Exception as error:  # Triton's own errors are no RuntimeErrors
        logger.debug("a candidate could not be timed: %s", error)
        return None


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _is_kept(entry: Any) -> bool:
    if not (isinstance(entry, dict) and isinstance(entry.get("answer"), str)):
        return False
    seconds = entry.get("seconds")
    return isinstance(seconds, dict) and all(isinstance(s, int | float) for s in seconds.values())


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The file's answers by machine; none if it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {key: value for key, value in content.items() if isinstance(value, dict)}


def _keep(path: Path, machine: str, question: str, entry: Mapping[str, Any]) -> None:
    """Add an answer to the file atomically; a folder that cannot be written is no error.

    Two processes that write at once may lose one answer, which is then measured again.
    """
    kept = _read(path)
    kept.setdefault(machine, {})[question] = dict(entry)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=path.name, delete=False
        ) as file:
            json.dump(kept, file, indent=1, sort_keys=True)
        try:
            Path(file.name).replace(path)
        except OSError:
            Path(file.name).unlink()
            raise
    except OSError as error:
        logger.info("%s cannot be written (%s): each process measures again", path, error)


@cache
def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, "CPU")
