"""Files and folders that appear complete or not at all, and JSON written that way."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peftlab.errors import CheckFailed, ConfigError

_UNFINISHED = ".unfinished-"


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, its keys in their order; the file is complete or does not appear."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises `CheckFailed` naming the file where it is missing or broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckFailed(f"{path} is missing; is {path.parent} the right folder?") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckFailed(f"{path} is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise CheckFailed(f"{path} holds a {type(value).__name__}, not an object.")
    return value


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A sibling to write to, which replaces `path` in one rename when the block succeeds.

    Hard links to the file that was there before keep its content. One process at a time.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or a copy where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def fsync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """`fsync` for all that a folder holds, and the folder itself."""
    for path in folder.rglob("*"):
        fsync(path)
    fsync(folder)


def check_new_folder(final: Path) -> None:
    """Refuse a folder that is in use, or cannot be created. Raises `ConfigError`."""
    if final.exists() and not final.is_dir():
        raise ConfigError(f"{final} is a file; name a folder that is new or empty.")
    if final.is_dir() and any(final.iterdir()):
        raise ConfigError(f"{final} is not empty; name a folder that is new or empty.")
    for parent in final.absolute().parents:
        if parent.exists():
            if not parent.is_dir() or not os.access(parent, os.W_OK):
                raise ConfigError(f"{final} cannot be created: {parent} is not writable.")
            return


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A temporary sibling folder, which becomes `final` in one rename when the block succeeds.

    All its files are on the disk by then. A failure leaves nothing behind; a kill leaves the
    sibling, which the next call for `final` removes. Raises `ConfigError` as `check_new_folder`
    does, `CheckFailed` where the disk is full.
    """
    check_new_folder(final)
    final = final.absolute()
    created = [p for p in (final.parent, *final.parent.parents) if not p.exists()]
    final.parent.mkdir(parents=True, exist_ok=True)
    for left in final.parent.glob(f".{final.name}{_UNFINISHED}*"):
        if not _in_use(left):
            shutil.rmtree(left, ignore_errors=True)
    prefix = f".{final.name}{_UNFINISHED}{os.getpid()}-"
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=final.parent))
    try:
        yield folder
        fsync_tree(folder)
        folder.chmod(0o777 & ~_umask())
        os.replace(folder, final)  # noqa: PTH105  (an empty folder of that name is replaced)
        fsync(final.parent)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        remove_empty(created)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            free = shutil.disk_usage(final.parent if final.parent.exists() else Path.cwd()).free
            raise CheckFailed(
                f"The disk of {final.parent} is full ({free / 2**20:.0f} MiB are free now, without "
                "what had been written); free some, or name a folder on another disk."
            ) from None
        raise


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove those of the folders, innermost first, that are empty."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _in_use(left: Path) -> bool:
    """Whether the process that began an unfinished folder still runs."""
    pid = left.name.rpartition(_UNFINISHED)[2].partition("-")[0]
    return pid.isdecimal() and int(pid) != os.getpid() and Path(f"/proc/{pid}").exists()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
