"""A model's folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peftlab.errors import CheckFailed, ConfigError

_UNFINISHED = ".unfinished-"


def check_output(final: Path) -> None:
    """Refuse a folder that is taken, or cannot be made. Raises `ConfigError`."""
    if final.exists() and not final.is_dir():
        raise ConfigError(f"{final} is a file; name a folder that is new or empty.")
    if final.is_dir() and any(final.iterdir()):
        raise ConfigError(f"{final} is not empty; name a folder that is new or empty.")
    for parent in final.absolute().parents:
        if parent.exists():
            if not parent.is_dir() or not os.access(parent, os.W_OK):
                raise ConfigError(f"{final} cannot be made: {parent} is not writable.")
            return


@contextmanager
def appearing(final: Path) -> Iterator[Path]:
    """A temporary sibling folder, which becomes `final` in one rename when the block ends well.

    All its files are on the disk by then. Whatever ends the block otherwise leaves nothing, but for
    a kill, whose sibling the next export into `final` removes. Raises `ConfigError` as
    `check_output` does, `CheckFailed` where the disk is full.
    """
    check_output(final)
    final = final.absolute()
    made = [p for p in (final.parent, *final.parent.parents) if not p.exists()]
    final.parent.mkdir(parents=True, exist_ok=True)
    for left in final.parent.glob(f".{final.name}{_UNFINISHED}*"):
        if not _alive(left):
            shutil.rmtree(left, ignore_errors=True)
    prefix = f".{final.name}{_UNFINISHED}{os.getpid()}-"
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=final.parent))
    try:
        yield folder
        for file in folder.rglob("*"):
            _sync(file)  # shards are there already: for them it costs nothing
        _sync(folder)
        folder.chmod(0o777 & ~_umask())
        os.replace(folder, final)  # noqa: PTH105  (an empty folder of that name is replaced)
        _sync(final.parent)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        if isinstance(error, OSError) and error.errno == 28:
            free = shutil.disk_usage(final.parent if final.parent.exists() else Path.cwd()).free
            raise CheckFailed(
                f"The disk of {final.parent} is full ({free / 2**20:.0f} MiB are free now, without "
                "what had been written); free some, or name a folder on another disk."
            ) from None
        raise


def _alive(left: Path) -> bool:
    """Whether the process that began a folder is still there."""
    pid = left.name.rpartition(_UNFINISHED)[2].partition("-")[0]
    return pid.isdecimal() and int(pid) != os.getpid() and Path(f"/proc/{pid}").exists()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
