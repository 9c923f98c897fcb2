"""A source's splits before they are read: its files or hub splits, and which serve as which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from peftlab.config.reader import ReaderConfig
from peftlab.data.labels.labels_file import LABELS_FILE, read_labels_file
from peftlab.data.reading.data_file import DataFile, data_file
from peftlab.data.reading.discover import check_one_format, find_split_files, is_local
from peftlab.data.reading.hub import load_hub_splits
from peftlab.data.reading.hub_folder import Labels, hub_labels
from peftlab.data.reading.raw_splits import RawSplit, join
from peftlab.data.reading.readers import is_folder_format, open_one, open_splits
from peftlab.data.reading.split_names import find_usual, pick_split
from peftlab.data.slices import Part, parse_parts
from peftlab.data.source import Source
from peftlab.data.split_column import by_column
from peftlab.errors import ConfigError


def open_source(
    source: Source, *, streaming: bool
) -> tuple[Mapping[str, Opener], tuple[str, ...] | None, str]:
    """Every split unopened, declared label names, and their origin."""
    if not is_local(source.place):
        loaded = load_hub_splits(source.place, source.subset, streaming=streaming)
        return _opened(source, loaded), None, ""
    path = Path(source.place).expanduser()
    folder = path if path.is_dir() else path.parent
    names = read_labels_file(folder), str(folder / LABELS_FILE)
    if path.is_dir() and is_folder_format(path, source.reader):
        return _opened(source, open_splits(data_file(path), source.reader)), *names
    files = find_split_files(source.place, source.subset)
    labels = hub_labels(path, source.subset) if path.is_dir() else {}
    openers = {n: Opener(n, tuple(part), source.reader, labels) for n, part in files.items()}
    if list(openers) == ["train"] and len(openers["train"].files) == 1:
        return _inside(source, openers["train"]), *names
    if source.split_column not in (None, "auto"):
        raise ConfigError(
            f"data.splits.column={source.split_column} chooses rows within one table, but "
            f"{source.place!r} has the splits {', '.join(openers)}."
        )
    return openers, *names


def _inside(source: Source, only: Opener) -> dict[str, Opener]:
    """The splits within one file: those that it holds, or those that a column of it names."""
    check_one_format(only.split, only.files)
    file = data_file(only.files[0].path, only.files[0].member)
    splits: Mapping[str, RawSplit] = open_splits(file, source.reader)
    if len(splits) == 1:
        (table,) = splits.values()
        table = _with_labels(table, only.labels)
        splits = by_column(table, source.split_column) or {"train": table}
    return _opened(source, splits)


def _opened(source: Source, splits: Mapping[str, RawSplit]) -> dict[str, Opener]:
    return {n: Opener(n, (), source.reader, opened=part) for n, part in splits.items()}


@dataclass(frozen=True, slots=True)
class Opener:
    """Opens a split when it is chosen, so that unused files cannot fail.

    `labels` are names of labels by column, which files do not have themselves.
    """

    split: str
    files: tuple[DataFile, ...]
    options: ReaderConfig
    labels: Labels = field(default_factory=dict)
    opened: RawSplit | None = None

    def __call__(self) -> RawSplit:
        if self.opened is not None:
            return self.opened
        check_one_format(self.split, self.files)
        parts = [open_one(data_file(f.path, f.member), self.options) for f in self.files]
        return _with_labels(join(parts), self.labels)


def _with_labels(raw: RawSplit, labels: Labels) -> RawSplit:
    known = {name: names for name, names in labels.items() if name in raw.columns}
    return replace(raw, class_names=known | dict(raw.class_names)) if known else raw


def choose_splits(
    raw: Mapping[str, Opener], source: str, train: str, validation: str | float, test: str | None
) -> dict[str, tuple[Part, ...]]:
    """What of the source train, validation and test are: splits, or slices of them."""
    chosen = {"train": _pick(raw, train, source, "train")}
    for split, wanted in (("validation", validation), ("test", test)):
        if wanted is None or not isinstance(wanted, str):
            continue
        if wanted == "auto":
            usual = find_usual(raw, split, source)
            used = {part.name for parts in chosen.values() for part in parts}
            if usual is not None and usual not in used:
                chosen[split] = (Part(usual),)
            continue
        parts = _pick(raw, wanted, source, split)
        for other, others in chosen.items():
            if common := next((part for part in parts if part in others), None):
                raise ConfigError(
                    f"data.splits.{split} and data.splits.{other} are both {str(common)!r}; name a "
                    "different split for each."
                )
        chosen[split] = parts
    return chosen


def _pick(raw: Mapping[str, Opener], wanted: str, source: str, split: str) -> tuple[Part, ...]:
    key = f"data.splits.{split}"
    return tuple(
        replace(part, name=pick_split(raw, part.name, source, key))
        for part in parse_parts(wanted, raw)
    )
