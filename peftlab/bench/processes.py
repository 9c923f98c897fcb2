"""Starts jobs, each in a fresh process, and stops them when the caller stops."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from peftlab.config.schema import RunConfig

HEAVY_MODULES = (
    "torch",
    "transformers.trainer",
    "transformers.models.auto.modeling_auto",
    "peft",
    "datasets",
    "sklearn.metrics",
    "matplotlib.backends.backend_agg",
    "bitsandbytes",
)
"""What every job imports; all of it leaves devices and thread pools alone until it is used."""

SECONDS_TO_END = 5.0


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """What a job returned, or why not: `error` is a sentence, `kind` its exception's name."""

    value: Mapping[str, Any] | None
    error: str | None
    kind: str | None


def can_fork_after_imports() -> bool:
    """Whether libraries may be imported before the fork.

    Not with an NVIDIA driver, whose state a fork cannot inherit once a library has asked it
    anything, and not on macOS, whose frameworks do not survive one.
    """
    return sys.platform == "linux" and not Path("/dev/nvidiactl").exists()


class JobServer:
    """Runs jobs one after the other, each in a fresh process; a context manager.

    The worker leads a session of its own, so that Ctrl-C reaches the caller alone, who ends the
    worker and the job in it by leaving the `with` block.
    """

    def __init__(self, preload: Sequence[str] | None = None) -> None:
        if preload is None:
            preload = HEAVY_MODULES if can_fork_after_imports() else ()
        self._preload = tuple(preload)
        self._worker: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _start(self, output: Path) -> subprocess.Popen[str]:
        environment = {
            "MPLBACKEND": "Agg",
            **os.environ,
            # The worker finds peftlab where this process did, installed or not.
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        with output.open("ab") as file:
            return subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "peftlab.bench.worker", *self._preload],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env=environment,
                start_new_session=True,
            )

    def run(self, function: str, config: RunConfig, *, log: Path) -> JobOutcome:
        """Call `function` (`package.module:name`) with `config` in a fresh process and wait.

        What the job prints and logs goes to the file `log`; what the worker itself says, to
        worker.log beside it.
        """
        if self._worker is None or self._worker.poll() is not None:
            self._worker = self._start(log.with_name("worker.log"))
        worker = self._worker
        assert worker.stdin is not None
        assert worker.stdout is not None
        reply = log.with_suffix(".reply")
        job = {
            "function": function,
            "config": config.model_dump(mode="json"),
            "log": str(log.resolve()),
            "reply": str(reply.resolve()),
        }
        answer = ""
        with contextlib.suppress(BrokenPipeError):
            worker.stdin.write(json.dumps(job) + "\n")
            worker.stdin.flush()
            answer = worker.stdout.readline()
        # A job that wrote its reply and then died while cleaning up has done its work.
        if reply.is_file():
            content = json.loads(reply.read_text(encoding="utf-8"))
            reply.unlink()
            return JobOutcome(content.get("value"), content.get("error"), content.get("kind"))
        return JobOutcome(None, describe_exit(answer.strip(), log), "ProcessEnded")

    def stop(self) -> None:
        """End the worker and whatever runs in it."""
        worker, self._worker = self._worker, None
        if worker is None:
            return
        for stop in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(worker.pid, stop)
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(SECONDS_TO_END)
        for pipe in (worker.stdin, worker.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def describe_exit(code: str, log: Path) -> str:
    """A sentence on a process that ended without writing its outcome."""
    if code == str(-signal.SIGKILL):
        return "The process was killed (SIGKILL): most likely the machine ran out of memory."
    if code.startswith("-"):
        return f"The process died of {signal.Signals(-int(code)).name}; its output is in {log}."
    if not code:
        return f"The process ended before it began; see {log.with_name('worker.log')}."
    return f"The process ended with exit code {code} and left no result; its output is in {log}."
