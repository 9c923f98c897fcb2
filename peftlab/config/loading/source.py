"""Reads YAML into plain values that know where each of their keys was written.

Scalars follow the core schema of YAML 1.2: `5e-4` is a number, `no` and `1:30` are text. Beyond
YAML, a key may be written once only, and keys are text. Values are built here, from PyYAML's nodes,
because libraries that read YAML 1.2 whole also read `1_000`, `0b1` and dates as something else than
text, share an alias's value between its keys, and do not give a key's place for every error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from peftlab.errors import ConfigError, did_you_mean

KeyPath = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"
_LONGEST_FILE = 1 << 20
_MOST_NODES = 20_000
"""Nodes a file may have with its aliases written out; more is no configuration but a bomb."""


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with the scalars of YAML 1.2 instead of those of 1.1."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML's own attribute)


for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(rf"^(?:{_pattern})$"), _first)


@dataclass(slots=True)
class Source:
    """Values, and for each key's path the place that it was written at, as messages name it."""

    label: str
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)

    def origin(self, path: KeyPath) -> str:
        """Where `path`, or what is in it, or the nearest part of it, was written."""
        if path in self.origins:
            return self.origins[path]
        for known, place in self.origins.items():
            if known[: len(path)] == path:
                return place
        for end in range(len(path) - 1, 0, -1):
            if path[:end] in self.origins:
                return self.origins[path[:end]]
        return self.label


def read_yaml(path: Path) -> Source:
    """The mapping in a file. Raises `ConfigError` naming file and line; an empty file is empty."""
    return parse_mapping(read_text(path), str(path))


def read_text(path: Path) -> str:
    """A small text file. Raises `ConfigError` where it is missing, a folder, binary or huge."""
    try:
        with path.open("rb") as opened:
            content = opened.read(_LONGEST_FILE + 1)
    except FileNotFoundError:
        beside = {near.name: str(near) for near in sorted(path.parent.glob("*.y*ml"))}
        hint = did_you_mean(path.name, beside)
        raise ConfigError(f"{path}: there is no such file{hint or '.'}") from None
    except IsADirectoryError:
        inside = path / "config.yaml"
        hint = f"; give a YAML file, such as {inside}" if inside.is_file() else ", not a YAML file"
        raise ConfigError(f"{path} is a folder{hint}.") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{path} cannot be read: {reason}.") from None
    if len(content) > _LONGEST_FILE:
        raise ConfigError(f"{path} is larger than 1 MiB, which no configuration is.")
    if b"\0" in content:
        raise ConfigError(f"{path} is a binary file, not YAML.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}:{line}: byte 0x{content[error.start]:02x} is not UTF-8; save it as UTF-8 text."
        ) from None


def parse_mapping(text: str, label: str) -> Source:
    """The mapping that YAML text is, positions as `label:line`. Raises `ConfigError`."""
    source = Source(label)
    node = _compose(text, label)
    if node is None:
        return source
    builder = _Builder(source)
    values = builder.value(node, ())
    if values is None:
        return source
    if not isinstance(values, dict):
        kind = "a list" if isinstance(values, list) else "a single value"
        raise ConfigError(
            f"{label}:{node.start_mark.line + 1}: holds {kind}; a configuration is lines of "
            "`key: value`, such as `task: text-classification`."
        )
    source.values = values
    return source


def parse_value(text: str, label: str) -> Any:
    """The value that YAML text is, on the command line or alone. Raises `ConfigError`."""
    node = _compose(text, label, lines=False)
    return None if node is None else _Builder(Source(label), lines=False).value(node, ())


def _compose(text: str, label: str, *, lines: bool = True) -> yaml.Node | None:
    try:
        node: yaml.Node | None = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_explain(error, text, label, lines)) from None
    except yaml.reader.ReaderError as error:
        place = f"{label}:{text.count(chr(10), 0, error.position) + 1}" if lines else label
        raise ConfigError(
            f"{place}: the character {chr(int(error.character))!r} cannot be in YAML."
        ) from None
    except RecursionError:
        raise ConfigError(f"{label}: is nested too deeply.") from None
    return node


def _explain(error: yaml.MarkedYAMLError, text: str, label: str, lines: bool) -> str:
    """One line for what PyYAML says in five."""
    mark = error.problem_mark or error.context_mark
    place = f"{label}:{mark.line + 1}" if mark is not None and lines else label
    problem = error.problem or "is not YAML"
    written = text.splitlines()
    line = written[mark.line] if mark is not None and mark.line < len(written) else ""
    if "\\t" in problem or "\t" in line[: len(line) - len(line.lstrip())]:
        return f"{place}: is indented with a tab; YAML takes spaces only."
    if "expected a single document" in (error.context or ""):
        return f"{place}: a second document starts here (`---`); a configuration is one."
    if "mapping values are not allowed" in problem:
        return f"{place}: a second `key: value` in one line, or the line above has no colon."
    context = f" {error.context}" if error.context else ""
    return f"{place}: is not YAML: {problem}{context}."


class _Builder:
    """Builds values from nodes and records the places of keys and list items."""

    def __init__(self, source: Source, *, lines: bool = True) -> None:
        self.source = source
        self.lines = lines
        self.nodes = 0
        self.open: set[int] = set()

    def place(self, node: yaml.Node) -> str:
        label = self.source.label
        return f"{label}:{node.start_mark.line + 1}" if self.lines else label

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        self.nodes += 1
        if id(node) in self.open:
            raise ConfigError(f"{self.place(node)}: the alias refers to what it stands in.")
        if self.nodes > _MOST_NODES:
            raise ConfigError(f"{self.place(node)}: has more than {_MOST_NODES} values.")
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node)
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
                return [self.item(child, (*path, i)) for i, child in enumerate(node.value)]
            if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
                return self.mapping(node, path)
        finally:
            self.open.discard(id(node))
        raise ConfigError(f"{self.place(node)}: the tag {node.tag!r} is not read here.")

    def item(self, node: yaml.Node, path: KeyPath) -> Any:
        self.source.origins[path] = self.place(node)
        return self.value(node, path)

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        written: dict[str, yaml.Node] = {}
        for key, child in node.value:
            if key.tag == _MERGE:
                merged |= self.merge(child, path)
                continue
            name = self.key(key)
            if name in written:
                first = written[name].start_mark.line + 1
                full = ".".join(map(str, (*path, name)))
                where = f"; it is set in line {first} too" if self.lines else ""
                raise ConfigError(f"{self.place(key)}: {full} is set twice{where}.")
            written[name] = key
            self.source.origins[(*path, name)] = self.place(key)
            values[name] = self.value(child, (*path, name))
        return {**{k: v for k, v in merged.items() if k not in values}, **values}

    def merge(self, node: yaml.Node, path: KeyPath) -> dict[str, Any]:
        """What `<<` brings in; of several mappings the first wins."""
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Any] = {}
        for part in nodes:
            values = self.value(part, path)
            if not isinstance(values, dict):
                raise ConfigError(f"{self.place(part)}: `<<` takes an alias of a mapping.")
            merged = {**values, **merged}
        return merged

    def key(self, node: yaml.Node) -> str:
        if isinstance(node, yaml.ScalarNode) and isinstance(name := self.scalar(node), str):
            return name
        shown = node.value if isinstance(node, yaml.ScalarNode) else "a mapping or list"
        raise ConfigError(f"{self.place(node)}: keys are text, and this one is {shown}.")

    def scalar(self, node: yaml.ScalarNode) -> Any:
        text = node.value
        match node.tag.removeprefix(_TAG):
            case "str":
                return text
            case "null":
                return None
            case "bool" if text.lower() in {"true", "false"}:
                return text.lower() == "true"
            case "int" | "float" as kind:
                try:
                    return _integer(text) if kind == "int" else _real(text)
                except ValueError:
                    raise ConfigError(f"{self.place(node)}: {text[:40]!r} is no number.") from None
            case _:
                raise ConfigError(f"{self.place(node)}: the tag {node.tag!r} is not read here.")


def _integer(text: str) -> int:
    base = {"0o": 8, "0x": 16}.get(text[:2].lower(), 10)
    return int(text, base)


def _real(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
