"""A source's splits before they are read: its files or hub splits, and which serve as which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from peftlab.config.reader import ReaderConfig
from peftlab.data.labels.labels_file import LABELS_FILE, read_labels_file
from peftlab.data.reading.data_file import DataFile, data_file
from peftlab.data.reading.discover import (
    check_one_format,
    find_split_files,
    is_local,
)
from peftlab.data.reading.hub import load_hub_splits
from peftlab.data.reading.raw_splits import RawSplit, join
from peftlab.data.reading.readers import open_one, open_splits
from peftlab.data.reading.split_names import find_usual, pick_split
from peftlab.data.source import Source
from peftlab.errors import ConfigError


def open_source(
    source: Source, *, streaming: bool
) -> tuple[Mapping[str, Opener], tuple[str, ...] | None, str]:
    """Every split unopened, declared label names, and their origin."""
    if not is_local(source.place):
        loaded = load_hub_splits(source.place, source.subset, streaming=streaming)
        opened = {name: Opener(name, (), source.reader, part) for name, part in loaded.items()}
        return opened, None, ""
    if source.subset is not None:
        raise ConfigError(
            f"data.subset={source.subset!r} chooses within a hub data set, but "
            f"{source.place!r} is local."
        )
    files = find_split_files(source.place)
    folder = Path(source.place).expanduser()
    folder = folder if folder.is_dir() else folder.parent
    openers = {name: Opener(name, tuple(part), source.reader) for name, part in files.items()}
    if [len(part) for part in files.values()] == [1]:
        # One file alone may hold several splits.
        (only,) = openers.values()
        file = data_file(only.files[0].path, only.files[0].member)
        inside = open_splits(file, source.reader)
        if len(inside) > 1:
            openers = {n: Opener(n, (), source.reader, part) for n, part in inside.items()}
    return openers, read_labels_file(folder), str(folder / LABELS_FILE)


@dataclass(frozen=True, slots=True)
class Opener:
    """Opens a split when it is chosen, so that unused files cannot fail."""

    split: str
    files: tuple[DataFile, ...]
    options: ReaderConfig
    opened: RawSplit | None = None

    def __call__(self) -> RawSplit:
        if self.opened is not None:
            return self.opened
        check_one_format(self.split, self.files)
        return join([open_one(data_file(f.path, f.member), self.options) for f in self.files])


def choose_splits(
    raw: Mapping[str, Opener], source: str, train: str, validation: str | float, test: str | None
) -> dict[str, str]:
    """The names in the source of train, validation and test."""
    chosen = {"train": pick_split(raw, train, source, "data.splits.train")}
    for split, wanted in (("validation", validation), ("test", test)):
        if wanted is None or not isinstance(wanted, str):
            continue
        if wanted == "auto":
            usual = find_usual(raw, split, source)
            if usual is not None and usual not in chosen.values():
                chosen[split] = usual
            continue
        name = pick_split(raw, wanted, source, f"data.splits.{split}")
        if name in chosen.values():
            other = next(key for key, value in chosen.items() if value == name)
            raise ConfigError(
                f"data.splits.{split} and data.splits.{other} are both {name!r}; name a "
                "different split for each."
            )
        chosen[split] = name
    return chosen
