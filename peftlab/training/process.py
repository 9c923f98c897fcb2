"""The training process: a single one; Ctrl-C or SIGTERM finish the step and save a checkpoint."""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from peftlab.errors import ConfigError


def refuse_many_processes() -> None:
    """Raise `ConfigError` where a launcher (accelerate, torchrun) started several processes."""
    world = os.environ.get("WORLD_SIZE", "1")
    if world.isdecimal() and int(world) > 1:
        raise ConfigError(
            f"peftlab trains in one process, but a launcher started {world} (WORLD_SIZE={world}); "
            "start it with `peftlab train` alone, or with --num_processes 1."
        )


logger = logging.getLogger("peftlab")


class StopSignals:
    """Context manager that turns the first SIGINT or SIGTERM into a request to stop.

    A second one raises `KeyboardInterrupt` at once. Outside the main thread, where Python allows
    no handlers, nothing is changed.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name
        logger.warning(
            "%s: stopping after this step, with a checkpoint; repeat to stop at once.",
            self.requested,
        )
