"""`main`: from arguments to an exit code. Every failure ends in one message on stderr."""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
from collections.abc import Sequence

from peftlab.cli.arguments import parse
from peftlab.cli.context import debugging, discard_stdout, quiet, stdout_to_stderr
from peftlab.errors import PeftlabError

FAILED = 1
DOES_NOT_FIT = 3
STOPPED = 130
# Messages of torch's CPU allocator on Linux and macOS, and on Windows.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "Cannot allocate memory")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (without the program's name) and return its exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with quiet():
            return _run(words)
    except BrokenPipeError:
        return _reader_gone()
    except SystemExit as leaving:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            return _reader_gone()
        return leaving.code if isinstance(leaving.code, int) else 0
    except KeyboardInterrupt:
        _say("Stopped.")
        return STOPPED
    except PeftlabError as error:
        if debugging():
            traceback.print_exc()
        _say(str(error))
        return error.exit_code
    except Exception as error:
        return _unexpected(error)


def _run(words: list[str]) -> int:
    command, options = parse(words)
    if options.verbose:
        logging.getLogger("peftlab").setLevel(logging.DEBUG)
    # Imported for the command, so that --help needs neither pydantic nor yaml.
    from peftlab.cli.commands import RUN

    try:
        with stdout_to_stderr():
            answer = RUN[command](options)
    except BrokenPipeError as error:
        # Not stdout: nothing has been written to it yet.
        return _unexpected(error)
    from peftlab.cli.screen import Screen, write_json

    if options.json:
        write_json(answer.data)
    else:
        answer.show(Screen())
    sys.stdout.flush()
    if answer.failure is not None:
        _say(answer.failure)
        return FAILED
    return 0


def _reader_gone() -> int:
    """The reader of a pipe (`peftlab ... | head`) has closed it; the work is done."""
    discard_stdout()
    return 0


def _is_out_of_memory(error: Exception) -> bool:
    """Whether it is Python's, CUDA's, or the CPU allocator's, which is a plain RuntimeError."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    message = str(error)
    return isinstance(error, RuntimeError) and any(words in message for words in _NO_MEMORY)


def _unexpected(error: Exception) -> int:
    if debugging():
        traceback.print_exc()
    lines = str(error).strip().splitlines() or ["no message"]
    if _is_out_of_memory(error):
        _say(
            f"Out of memory: {lines[0]}\nLower train.micro_batch_size or data.max_length, or set "
            "train.gradient_checkpointing=true."
        )
        return DOES_NOT_FIT
    shown = "\n".join(lines[:3])
    hint = "" if debugging() else "\nPEFTLAB_DEBUG=1 shows the traceback."
    _say(f"peftlab failed unexpectedly: {type(error).__name__}: {shown}{hint}")
    return FAILED


def _say(message: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(message, file=sys.stderr, flush=True)
