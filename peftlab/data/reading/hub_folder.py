"""A downloaded repository of a hub data set: what the header of its README.md says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftlab.data.reading.data_file import DataFile
from peftlab.errors import ConfigError, DataError

_FENCE = "---"

Labels = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class HubConfig:
    """A configuration of a data set: its files by split, or a folder of its own, and label names.

    With neither, the folder's layout says which files there are.
    """

    name: str
    files: Mapping[str, list[DataFile]] = field(default_factory=dict)
    folder: Path | None = None
    labels: Labels = field(default_factory=dict)
    is_default: bool = False


def hub_configs(folder: Path) -> dict[str, HubConfig]:
    """The configurations in a folder's README.md; empty where it has none.

    Raises `DataError` for a header that is not YAML, and for patterns without a file.
    """
    header = _header(folder / "README.md")
    labels = {name: _labels(info) for name, info in _infos(header).items()}
    configs: dict[str, HubConfig] = {}
    for entry in _mappings(header.get("configs")):
        name = str(entry.get("config_name", "default"))
        inner = folder / str(entry["data_dir"]) if entry.get("data_dir") else folder
        patterns = _patterns(entry.get("data_files"))
        configs[name] = HubConfig(
            name,
            {split: _matching(folder, inner, found) for split, found in patterns.items()},
            inner if inner != folder and not patterns else None,
            labels.get(name, labels.get("default", {})),
            entry.get("default") is True or name == "default",
        )
    if not configs and len(labels) == 1:
        (only,) = labels.values()
        return {"default": HubConfig("default", labels=only, is_default=True)} if only else {}
    return configs


def choose_config(folder: Path, subset: str | None) -> HubConfig | None:
    """The configuration that `data.subset` names, the default one, or None where there is none.

    Raises `ConfigError` where the name is unknown, or where several leave it open.
    """
    configs = hub_configs(folder)
    if subset is not None and configs and (subset in configs or _have_files(configs)):
        if subset not in configs:
            raise ConfigError(
                f"data.subset={subset!r} is not in {folder / 'README.md'}; it has "
                f"{', '.join(list(configs)[:12])}."
            )
        return configs[subset]
    default = [config for config in configs.values() if config.is_default]
    if default or len(configs) < 2:
        return next(iter(default or configs.values()), None)
    raise ConfigError(
        f"data.source {str(folder)!r} has several subsets, {', '.join(list(configs)[:12])}; name "
        f"one with data.subset={next(iter(configs))}."
    )


def _have_files(configs: Mapping[str, HubConfig]) -> bool:
    return any(config.files or config.folder for config in configs.values())


def hub_labels(folder: Path, subset: str | None) -> Labels:
    """The names of labels, by column, that a repository's README.md declares."""
    config = choose_config(folder, subset)
    return {} if config is None else config.labels


def _header(readme: Path) -> Mapping[str, Any]:
    import yaml

    if not readme.is_file():
        return {}
    lines = readme.read_text(encoding="utf-8", errors="replace").lstrip("\ufeff").splitlines()
    if not lines or lines[0].strip() != _FENCE or _FENCE not in (ln.strip() for ln in lines[1:]):
        return {}
    end = next(i for i, line in enumerate(lines[1:], start=1) if line.strip() == _FENCE)
    try:
        header = yaml.safe_load("\n".join(lines[1:end]))
    except yaml.YAMLError as error:
        raise DataError(
            f"{readme}: its header is not YAML ({' '.join(str(error).split())[:120]}); repair it, "
            "or name the data file itself as data.source."
        ) from None
    return header if isinstance(header, dict) else {}


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    entries = value if isinstance(value, list) else [value]
    return [entry for entry in entries if isinstance(entry, dict)]


def _patterns(data_files: Any) -> dict[str, list[str]]:
    """Patterns by split of `data_files` in each of its spellings."""
    if data_files is None:
        return {}
    if isinstance(data_files, dict):
        return {str(split): _texts(paths) for split, paths in data_files.items()}
    entries = data_files if isinstance(data_files, list) else [data_files]
    if all(isinstance(entry, dict) for entry in entries):
        return {str(e.get("split", "train")): _texts(e.get("path", [])) for e in entries}
    return {"train": _texts(entries)}


def _texts(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def _matching(folder: Path, inner: Path, patterns: Sequence[str]) -> list[DataFile]:
    found: dict[Path, None] = {}
    for pattern in patterns:
        paths = sorted(p for p in inner.glob(pattern.lstrip("/")) if p.is_file())
        inside = [p for p in paths if p.resolve().is_relative_to(folder.resolve())]
        if not inside:
            raise DataError(
                f"{folder / 'README.md'} names the files {pattern!r}, and none is in {inner}; "
                "download the repository's files too (Git LFS may have left pointers)."
            )
        found.update(dict.fromkeys(inside))
    return [DataFile(path) for path in found]


def _infos(header: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    entries = _mappings(header.get("dataset_info"))
    return {str(entry.get("config_name", "default")): entry for entry in entries}


def _labels(info: Mapping[str, Any]) -> Labels:
    """The names of the labels of columns, as `dataset_info` has them."""
    labels: dict[str, tuple[str, ...]] = {}
    for feature in _mappings(info.get("features")):
        kinds = [feature.get("dtype"), feature.get("sequence"), feature.get("list")]
        for kind in kinds:
            kind = kind.get("dtype", kind) if isinstance(kind, dict) else kind
            names = kind.get("class_label", {}).get("names") if isinstance(kind, dict) else None
            if isinstance(names, dict):
                names = [names[key] for key in sorted(names, key=int)]
            if isinstance(names, list) and names:
                labels[str(feature.get("name"))] = tuple(map(str, names))
    return labels
