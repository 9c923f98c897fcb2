"""Find the split files of a local source: a file, a folder, a zip archive, a hub repository."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from peftlab.data.labels.labels_file import LABELS_FILE
from peftlab.data.reading.data_file import DataFile, data_file, is_archive, members
from peftlab.data.reading.hub_folder import choose_config
from peftlab.data.reading.readers import extensions
from peftlab.data.reading.split_names import exact_split, splits_in
from peftlab.errors import ConfigError, DataError

SHARD = re.compile(r"^(?P<split>.+?)-(?P<index>\d{5})-of-(?P<total>\d{5})$")
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")

_INNER = ("data", "dataset")

Files = dict[str, list[DataFile]]


def is_local(source: str) -> bool:
    """Whether `source` is a path: it exists, or is not spelt like a hub id."""
    path = Path(source).expanduser()
    if path.exists():
        return True
    return DataFile(path).suffix in (*extensions(), ".zip") or not _HUB_ID.match(source)


def find_split_files(source: str, subset: str | None = None) -> Files:
    """Split name to its file, or to its shards in order. A single file is the split `train`.

    `subset` chooses among folders that each have splits. Raises `DataError`, `ConfigError`.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(
            f"data.source {source!r}: no such file or folder"
            + (f" (looked at {path.absolute()})." if not path.is_absolute() else ".")
        )
    if path.is_dir():
        config = choose_config(path, subset)
        if config is not None and config.files:
            return dict(config.files)
        if config is not None and config.folder is not None:
            return find_split_files(str(config.folder))
        found, subsets = _in_folder(path)
        if len(found) == 1 and not splits_in(next(iter(found))):
            found = {"train": next(iter(found.values()))}
        if subset is None and found:
            return found
        listed = [p for p in sorted(path.iterdir()) if not p.name.startswith(".")]
        return _of_subset(source, subsets, subset, listed)
    if subset is not None:
        raise _no_subset(source, subset)
    if is_archive(path):
        inside = members(path)
        data_files = _data_files(inside)
        if len(data_files) == 1:
            return {"train": data_files}
        return by_split(data_files) or _nothing(source, [file.member for file in inside])
    if path.is_file():
        return {"train": [data_file(path)]}
    raise DataError(f"data.source {source!r} is neither a file nor a folder.")


def _no_subset(source: str, subset: str) -> ConfigError:
    return ConfigError(
        f"data.subset={subset!r} chooses within a hub data set, but {source!r} is local and has "
        "no subsets."
    )


def _of_subset(
    source: str, subsets: Mapping[str, Files], subset: str | None, files: Sequence[Path]
) -> Files:
    if subset is not None:
        if not subsets:
            raise _no_subset(source, subset)
        if subset not in subsets:
            raise ConfigError(
                f"data.subset={subset!r} is not in {source!r}; it has {', '.join(subsets)}."
            )
        return subsets[subset]
    if len(subsets) > 1:
        raise ConfigError(
            f"data.source {source!r} has several subsets, {', '.join(list(subsets)[:12])}; name "
            f"one with data.subset={next(iter(subsets))}."
        )
    for found in subsets.values():
        return found
    return _nothing(source, [path.name for path in files])


def _nothing(source: str, names: Sequence[str]) -> Files:
    content = f"it holds {', '.join(names[:8])}" if names else "it is empty"
    raise DataError(
        f"data.source {source!r} has no data files: {content}. Expected "
        f"train, validation and test files ending in {', '.join(extensions())}."
    )


def _files(folder: Path) -> Iterator[Path]:
    # iterdir, not glob: the folder's own name may contain [ ] or *.
    return (p for p in sorted(folder.iterdir()) if p.is_file() and not p.name.startswith("."))


def _in_folder(folder: Path, *, deep: bool = True) -> tuple[Files, dict[str, Files]]:
    """The splits in a folder (its files, else folders named as splits), and its subsets."""
    files = by_split(_data_files([DataFile(path) for path in _files(folder)]))
    if files or not deep:
        return files, {}
    folders = [p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    splits: Files = {}
    subsets: dict[str, Files] = {}
    for inner in folders:
        inside = _data_files([DataFile(path) for path in _files(inner)])
        if exact_split(inner.name) is not None and inside:
            splits[inner.name] = inside
        elif inner.name in _INNER:
            return _in_folder(inner)
        elif found := _in_folder(inner, deep=False)[0] or _split_folders(inner):
            subsets[inner.name] = found
    return splits, subsets if not splits else {}


def _split_folders(folder: Path) -> Files:
    inner = [p for p in sorted(folder.iterdir()) if p.is_dir() and exact_split(p.name)]
    inside = {p.name: _data_files([DataFile(path) for path in _files(p)]) for p in inner}
    return {name: files for name, files in inside.items() if files}


def _data_files(files: Sequence[DataFile]) -> list[DataFile]:
    known = (*extensions(), ".zip")
    return [f for f in files if f.suffix in known and f.name not in (LABELS_FILE, "README.txt")]


def by_split(files: Sequence[DataFile]) -> Files:
    """Files by the split that each is, or is a shard of."""
    splits: Files = {}
    for file in files:
        shard = SHARD.match(file.stem)
        splits.setdefault(shard["split"] if shard else file.stem, []).append(file)
    return splits


def check_one_format(split: str, files: Sequence[DataFile]) -> None:
    """Refuse a split that exists twice, in several formats, or with missing shards."""
    names = ", ".join(file.name for file in files[:8])
    suffixes = {file.suffix for file in files}
    where = files[0].path if files[0].member else files[0].path.parent
    if len(suffixes) > 1:
        raise DataError(f"{where}: split {split!r} exists in several formats ({names}); keep one.")
    shards = [SHARD.match(file.stem) for file in files]
    numbers = {(int(m["index"]), int(m["total"])) for m in shards if m}
    if any(m is None for m in shards):
        if len(files) > 1 and any(file.stem == split for file in files):
            raise DataError(f"{where}: split {split!r} has several files ({names}); keep one.")
        return
    total = len(files)
    if numbers != {(index, total) for index in range(total)}:
        raise DataError(f"{where}: the shards of split {split!r} are incomplete ({names}).")
