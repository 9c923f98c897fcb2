"""The context of a command: logging, other libraries' output, and stdout; restored afterwards."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator

_QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "BITSANDBYTES_NOWELCOME": "1",
}
_NO_BARS = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
}


def debugging() -> bool:
    """Whether PEFTLAB_DEBUG asks for tracebacks and every library's own messages."""
    return os.environ.get("PEFTLAB_DEBUG", "") not in ("", "0")


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message = super().format(record)
        if record.levelno < logging.WARNING:
            return message
        return f"{record.levelname.lower()}: {message}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Log to stderr, and silence other libraries unless the environment configures them."""
    settings = {} if debugging() else dict(_QUIET)
    if not sys.stderr.isatty():
        settings |= _NO_BARS
    added = [name for name in settings if name not in os.environ]
    os.environ.update({name: settings[name] for name in added})
    logger = logging.getLogger("peftlab")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if debugging() else logging.INFO)
    logger.propagate = False
    # On a CPU with AVX512 it warns of a missing package with a 4-bit kernel, which is unused here.
    noisy = logging.getLogger("bitsandbytes")
    loudness = noisy.level
    if not debugging():
        noisy.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            if not debugging():
                warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before
        noisy.setLevel(loudness)
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Redirect stdout to stderr, child processes and C code included.

    Only a command's answer goes to stdout, after this.
    """
    sys.stdout.flush()
    kept: int | None = None
    with contextlib.suppress(OSError, ValueError):
        # Descriptor 1 itself; without descriptors, redirecting Python's stream suffices.
        kept = os.dup(1)
        os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if kept is not None:
            os.dup2(kept, 1)
            os.close(kept)


def discard_stdout() -> None:
    """After the reader has closed the pipe: keep the interpreter's last flush from failing."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
