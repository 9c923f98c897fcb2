"""A run's folder on disk: built under another name, renamed when it is complete.

RUN/                     the finished run; appears in one rename
  config.yaml            the resolved configuration, ready to run again
  peftlab.json           the record for opening the run: task state, base model, method
  metrics.json           {"train": ..., "validation": ..., "test": ...}
  environment.json       versions and device
  dropped_rows.jsonl     rows that were left out, where any was
  adapter/ | trained/    the trained part (plain PEFT, or safetensors)
  tokenizer/  plots/  log.csv
RUN.unfinished/          the same during training, with checkpoints to resume from
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from peftlab.errors import ConfigError, Interrupted
from peftlab.files import fsync, fsync_tree, remove_empty

RECORD = "peftlab.json"
CONFIG = "config.yaml"
METRICS = "metrics.json"
ENVIRONMENT = "environment.json"


def staging_folder(final: Path) -> Path:
    """The folder of a run until it is complete."""
    return final.with_name(f"{final.name}.unfinished")


def newest_checkpoint(staging: Path) -> Path | None:
    """The checkpoint of the highest step in an unfinished run, or None."""
    checkpoints = [p for p in staging.glob("checkpoint-*") if p.name.split("-")[-1].isdecimal()]
    return max(checkpoints, key=lambda p: int(p.name.split("-")[-1]), default=None)


@dataclass(frozen=True, slots=True)
class Staging:
    """A run during training. `resume` is the checkpoint to resume from, if any."""

    final: Path
    folder: Path
    resume: Path | None


def check_free(final: Path, *, overwrite: bool, resume: str | Path) -> Path | None:
    """Refuse an output folder that is in use; return the checkpoint that `resume` names.

    Raises `ConfigError` where the folder holds other files, or an unfinished run that the user
    neither resumes nor overwrites, or where the named checkpoint does not exist.
    """
    staging = staging_folder(final)
    if not final.exists() and _replaced(final).is_dir():
        # Killed between the two renames of an overwrite: the earlier run is restored.
        _replaced(final).rename(final)
    if final.exists() and not final.is_dir():
        raise ConfigError(f"output.dir is {final}, which is a file; choose another folder.")
    if final.is_dir() and any(final.iterdir()):
        if not (final / RECORD).is_file():
            raise ConfigError(
                f"output.dir is {final}, which is not empty and not a run; choose another folder."
            )
        if not overwrite:
            raise ConfigError(
                f"output.dir is {final}, which holds a finished run; choose another folder, "
                "or set output.overwrite=true to replace it."
            )
    for parent in final.parents:
        if parent.exists():
            if not parent.is_dir():
                raise ConfigError(
                    f"output.dir is {final}, but {parent} is a file; choose another folder."
                )
            if not os.access(parent, os.W_OK):
                raise ConfigError(
                    f"output.dir is {final}, but {parent} is not writable; choose another folder."
                )
            break
    checkpoint = newest_checkpoint(staging)
    if isinstance(resume, Path) or resume not in ("auto", "never"):
        named = Path(resume)
        chosen = named if named.name.startswith("checkpoint-") else newest_checkpoint(named)
        if chosen is None or not chosen.is_dir():
            raise ConfigError(
                f"--resume {named}: no checkpoint there; --resume auto takes the newest."
            )
        if chosen.resolve().parent != staging.resolve():
            raise ConfigError(
                f"--resume {named}: it belongs to another run than output.dir={final}, "
                f"whose checkpoints are in {staging}."
            )
        return chosen
    if checkpoint is not None and resume == "never" and not overwrite:
        raise ConfigError(
            f"{staging} holds an unfinished run, at {checkpoint.name}; resume with --resume auto, "
            "or set output.overwrite=true to start again."
        )
    return checkpoint if resume == "auto" else None


@contextlib.contextmanager
def stage(final: Path, *, overwrite: bool, resume: str | Path) -> Iterator[Staging]:
    """Build a run in `RUN.unfinished`, and rename it to RUN when the block succeeds.

    When the block raises, RUN does not appear; the unfinished folder is kept only where it holds a
    checkpoint to resume from. Raises `ConfigError` as `check_free` does, and where another
    process is training into the same folder.
    """
    checkpoint = check_free(final, overwrite=overwrite, resume=resume)
    folder = staging_folder(final)
    created = [p for p in (final.parent, *final.parent.parents) if not p.exists()]
    final.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"Another process is training into {folder}; choose another output.dir."
        ) from None
    try:
        if checkpoint is None and folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(exist_ok=True)
        try:
            yield Staging(final, folder, checkpoint)
        except BaseException as error:
            kept = newest_checkpoint(folder)
            if kept is None:
                shutil.rmtree(folder, ignore_errors=True)
            elif isinstance(error, Interrupted):
                raise Interrupted(f"{error} Resume with --resume auto, from {kept}.") from None
            raise
        _publish(folder, final)
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
        # Only folders created here, and only while empty: a failed run leaves no trace.
        remove_empty(created)


def _publish(folder: Path, final: Path) -> None:
    """Rename a complete run. After a kill at any moment, a run to resume from is left."""
    fsync_tree(folder)
    if final.exists():
        old = _replaced(final)
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
        folder.rename(final)
        shutil.rmtree(old)
    else:
        folder.rename(final)
    fsync(final.parent)
    # Last: until the rename, the run could be resumed from them.
    for checkpoint in final.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def _replaced(final: Path) -> Path:
    """Where an earlier run is kept while the new one replaces it."""
    return final.with_name(f"{final.name}.replaced")


def is_run(folder: Path) -> bool:
    """Whether a folder is a finished run."""
    return (folder / RECORD).is_file() and (folder / CONFIG).is_file()
