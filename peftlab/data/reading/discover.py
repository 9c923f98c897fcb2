"""Find the split files of a local source."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from peftlab.data.labels.labels_file import LABELS_FILE
from peftlab.data.reading.data_file import DataFile, data_file, is_archive, members
from peftlab.data.reading.readers import extensions
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
    return DataFile(path).suffix in (*extensions(), ".zip") or not _HUB_ID.match(source)


def find_split_files(source: str) -> dict[str, list[DataFile]]:
    """Split name to its file, or to its shards in order. A single file is the split `train`.

    Raises `DataError`.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(
            f"data.source {source!r}: no such file or folder"
            + (f" (looked at {path.absolute()})." if not path.is_absolute() else ".")
        )
    if is_archive(path):
        return _by_split(source, members(path), single=True)
    if path.is_file():
        return {"train": [data_file(path)]}
    if not path.is_dir():
        raise DataError(f"data.source {source!r} is neither a file nor a folder.")
    # iterdir, not glob: the folder's own name may contain [ ] or *.
    files = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
    return _by_split(source, [DataFile(file) for file in files], single=False)


def _by_split(source: str, files: Sequence[DataFile], *, single: bool) -> dict[str, list[DataFile]]:
    """The data files of a folder, or of an archive, whose `single` file may have any name."""
    known = extensions()
    data_files = [f for f in files if f.suffix in known and f.name != LABELS_FILE]
    if not data_files:
        content = f"it holds {', '.join(f.name for f in files[:8])}" if files else "it is empty"
        raise DataError(
            f"data.source {source!r} has no data files: {content}. Expected "
            f"train, validation and test files ending in {', '.join(known)}."
        )
    if single and len(data_files) == 1:
        return {"train": data_files}
    splits: dict[str, list[DataFile]] = {}
    for file in data_files:
        shard = _SHARD.match(file.stem)
        splits.setdefault(shard["split"] if shard else file.stem, []).append(file)
    return splits


def check_one_format(split: str, files: Sequence[DataFile]) -> None:
    """Refuse a split that exists twice, in several formats, or with missing shards."""
    names = ", ".join(file.name for file in files)
    suffixes = {file.suffix for file in files}
    if len(suffixes) > 1:
        raise DataError(
            f"{files[0].path.parent}: split {split!r} exists in several formats "
            f"({names}); keep one."
        )
    shards = [_SHARD.match(file.stem) for file in files]
    numbers = {(int(m["index"]), int(m["total"])) for m in shards if m}
    if any(m is None for m in shards):
        if len(files) > 1:
            raise DataError(
                f"{files[0].path.parent}: split {split!r} has several files ({names}); keep one."
            )
        return
    total = len(files)
    if numbers != {(index, total) for index in range(total)}:
        raise DataError(
            f"{files[0].path.parent}: the shards of split {split!r} are incomplete ({names})."
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
