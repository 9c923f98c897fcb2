"""Find the split files of a local source."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from peftlab.data.labels.labels_file import LABELS_FILE
from peftlab.data.reading.raw_splits import EXTENSIONS
from peftlab.errors import DataError

USUAL_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
_SHARD = re.compile(r"^(?P<split>.+?)-(?P<index>\d{5})-of-(?P<total>\d{5})$")
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")


def is_local(source: str) -> bool:
    """Whether `source` is a path: it exists, or is not spelt like a hub id."""
    path = Path(source).expanduser()
    if path.exists():
        return True
    return path.suffix.lower() in EXTENSIONS or not _HUB_ID.match(source)


def find_split_files(source: str) -> dict[str, list[Path]]:
    """Split name to its file, or to its shards in order. A single file is the split `train`."""
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(
            f"data.source {source!r}: no such file or folder"
            + (f" (looked at {path.absolute()})." if not path.is_absolute() else ".")
        )
    if path.is_file():
        return {"train": [path]}
    if not path.is_dir():
        raise DataError(f"data.source {source!r} is neither a file nor a folder.")
    return _files_of_folder(path)


def _files_of_folder(folder: Path) -> dict[str, list[Path]]:
    # iterdir, not glob: the folder's own name may contain [ ] or *.
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    data_files = [p for p in files if p.suffix.lower() in EXTENSIONS and p.name != LABELS_FILE]
    if not data_files:
        content = f"it holds {', '.join(p.name for p in files[:8])}" if files else "it is empty"
        raise DataError(
            f"data.source {str(folder)!r} has no data files: {content}. Expected "
            f"train, validation and test files ending in {', '.join(EXTENSIONS)}."
        )
    splits: dict[str, list[Path]] = {}
    for path in data_files:
        shard = _SHARD.match(path.stem)
        splits.setdefault(shard["split"] if shard else path.stem, []).append(path)
    return splits


def check_one_format(split: str, paths: Sequence[Path]) -> None:
    """Refuse a split that exists twice, in several formats, or with missing shards."""
    names = ", ".join(path.name for path in paths)
    suffixes = {path.suffix.lower() for path in paths}
    if len(suffixes) > 1:
        raise DataError(
            f"{paths[0].parent}: split {split!r} exists in several formats ({names}); keep one."
        )
    shards = [_SHARD.match(path.stem) for path in paths]
    numbers = {(int(m["index"]), int(m["total"])) for m in shards if m}
    if any(m is None for m in shards):
        if len(paths) > 1:
            raise DataError(
                f"{paths[0].parent}: split {split!r} has several files ({names}); keep one."
            )
        return
    total = len(paths)
    if numbers != {(index, total) for index in range(total)}:
        raise DataError(
            f"{paths[0].parent}: the shards of split {split!r} are incomplete ({names})."
        )


def pick_split(splits: Collection[str], wanted: str, where: str, key: str) -> str:
    """The split `wanted`, or one of another usual name for it. Raises `DataError`."""
    if wanted in splits:
        return wanted
    usual = find_usual(splits, wanted, where)
    if usual is not None:
        return usual
    known = ", ".join(splits)
    raise DataError(
        f"{where} has no split {wanted!r} ({key}); its splits are: {known}. "
        f"A folder's splits are its files' names without extensions."
    )


def find_usual(splits: Collection[str], split: str, where: str) -> str | None:
    """The split with a usual name of `split`, or None. Raises `DataError` for two of them."""
    matches = [name for name in splits if name in USUAL_NAMES.get(split, ())]
    if len(matches) > 1:
        raise DataError(
            f"{where} has {' and '.join(matches)}, which both mean {split!r}; keep one or name it "
            f"with data.splits.{split}=..."
        )
    return matches[0] if matches else None
