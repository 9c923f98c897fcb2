"""The process that runs the jobs of `processes.JobServer`, each in a fork of itself.

Importing torch, Transformers and PEFT takes ten seconds. This process imports them once, does
nothing with them, and forks for every job: a job starts at once in a process in which no other job
has run. It reads jobs as lines of JSON from stdin and answers each with a line on stdout.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from peftlab.config.schema import RunConfig
from peftlab.errors import PeftlabError
from peftlab.files import replacing


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent ends, however that happens."""
    if sys.platform == "linux":
        set_death_signal = 1
        with contextlib.suppress(OSError):
            ctypes.CDLL(None).prctl(set_death_signal, int(signal.SIGKILL))


def resolve(name: str) -> Any:
    """The function that `package.module:function` names."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def run_job(job: Mapping[str, Any]) -> int:
    """Call the job's function, write what came of it, return an exit code."""
    die_with_parent()
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    reply: dict[str, Any]
    code = 0
    try:
        value = resolve(job["function"])(RunConfig.model_validate(job["config"]))
        reply = {"value": dict(value) if isinstance(value, Mapping) else None}
    except PeftlabError as error:
        reply = {"error": str(error), "kind": type(error).__name__}
        code = error.exit_code
    except BaseException as error:
        # Whatever it is becomes a row of the report; the traceback stays in the log.
        traceback.print_exc()
        reply = {"error": f"{type(error).__name__}: {error}", "kind": type(error).__name__}
        code = 1
    with replacing(Path(job["reply"])) as partial:
        partial.write_text(json.dumps(reply), encoding="utf-8")
    return code


def end_process(code: int) -> NoReturn:
    """Clean up as an ending interpreter does, but do not take its modules apart.

    That would copy every page that the fork shares, which takes three seconds.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(preload: list[str]) -> int:
    """Import `preload`, then serve jobs until stdin closes."""
    die_with_parent()
    # Libraries print while they are imported; the answers go where only they are written.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for module in preload:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    # What is there now is never garbage: without it the collector leaves the shared pages alone.
    gc.freeze()
    while line := sys.stdin.readline():
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            end_process(run_job(job))
        _, status = os.waitpid(child, 0)
        answers.write(f"{os.waitstatus_to_exitcode(status)}\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
