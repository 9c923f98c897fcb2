"""Kinds (tasks, methods, formats of rows) by name: those that come along, and other packages'.

Another package adds one by an entry point whose name is the kind's and whose value is the class of
its options:

    [project.entry-points."peftlab.methods"]
    my_method = "my_package.options:MyOptions"
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Literal, TypeVar, get_args, get_origin

from peftlab.config.section import Section
from peftlab.errors import ConfigError

logger = logging.getLogger("peftlab")

Kind = TypeVar("Kind")


class Registry(Mapping[str, type[Kind]]):
    """Classes by name, those of `built_in` ("module:Class") first, in their order.

    Entry points of `group` are read again whenever `sys.path` has changed; `check` raises for a
    class that is no whole kind of the class `base`.
    """

    def __init__(
        self,
        group: str,
        base: str,
        built_in: Mapping[str, str],
        check: Callable[[Any, str, Any], None] | None = None,
    ) -> None:
        self.group = group
        self._check = check or check_kind
        self._base = base
        self._built_in = dict(built_in)
        self._kinds: dict[str, type[Kind]] = {}
        self._path: tuple[str, ...] | None = None

    def __getitem__(self, name: str) -> type[Kind]:
        return self._known()[name]

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._known())

    def __len__(self) -> int:
        return len(self._known())

    def _known(self) -> dict[str, type[Kind]]:
        path = tuple(sys.path)
        if self._path == path:
            return self._kinds
        kinds: dict[str, type[Kind]] = {}
        for name, place in self._built_in.items():
            kinds[name] = import_name(place)
        base = import_name(self._base)
        for point in entry_points(group=self.group):
            if point.name in kinds:
                logger.warning(
                    "the entry point %s of %s is left out: %s is taken by %s",
                    point.value, self.group, point.name, kinds[point.name].__module__,
                )  # fmt: skip
                continue
            try:
                kind = point.load()
                self._check(kind, point.name, base)
            except Exception as broken:  # Another package's fault must not stop every command.
                logger.warning(
                    "the entry point %s = %s of %s is left out: %s",
                    point.name, point.value, self.group, broken,
                )  # fmt: skip
                continue
            kinds[point.name] = kind
        self._kinds, self._path = kinds, path
        return kinds


def check_kind(kind: Any, name: str, base: type[Section]) -> None:
    """Raise `TypeError` for a class that is no whole kind of `base` under this name."""
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise TypeError(f"it is no subclass of {base.__name__}")
    annotation = kind.model_fields["name"].annotation
    tags = get_args(annotation) if get_origin(annotation) is Literal else ()
    if tags != (name,):
        raise TypeError(f'its field `name` is not annotated Literal["{name}"]')
    needed = sorted(n for n in base.__class_vars__ if not hasattr(base, n))
    if lacking := [n for n in needed if not hasattr(kind, n)]:
        raise TypeError(f"its class sets no {', '.join(lacking)}")


def implementation(section: str, name: str, place: str) -> Any:
    """The class that does what a kind's options configure, its module imported now.

    Raises `ConfigError` where it cannot be imported.
    """
    try:
        return import_name(place)
    except Exception as broken:  # Another package's module may raise anything.
        raise ConfigError(
            f"{section} is {name}, whose implementation {place} cannot be imported: {broken}; "
            "install what it lacks, or repair the package that it comes from."
        ) from broken


def import_name(place: str):  # type: ignore[no-untyped-def]
    """What "module:name" names, its module imported now."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
