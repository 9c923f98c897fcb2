"""Ctrl-C and SIGTERM during training: the step is finished and a checkpoint saved first."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

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
            "%s: stopping after this step, with a checkpoint; once more to stop at once.",
            self.requested,
        )
