"""Formats of rows by name: those that come along, and other packages'.

A format is a class of `peftlab.data.formats`, named here by a string alone: which tasks it serves
and what its columns are, it says itself. Another package adds one by an entry point:

    [project.entry-points."peftlab.formats"]
    my-format = "my_package.rows:MyFormat"
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any, Protocol

from peftlab.config.registry import Registry


class Format(Protocol):
    """What the configuration asks of a format; see `peftlab.data.formats.row_format`."""

    name: str
    tasks: tuple[str, ...]
    roles: Mapping[str, bool]
    not_read: Mapping[str, tuple[str, ...]]
    before: tuple[str, ...]


def _check(kind: Any, name: str, base: Any) -> None:
    """Raise `TypeError` for a class that is no whole format under this name."""
    if base not in getattr(kind, "__mro__", ()):
        raise TypeError(f"it is no subclass of {base.__name__}")
    declared = ("name", "tasks", "roles", "usual", "gives")
    if lacking := [attribute for attribute in declared if not hasattr(kind, attribute)]:
        raise TypeError(f"its class sets no {', '.join(lacking)}")
    if kind.name != name:
        raise TypeError(f"its `name` is not {name!r}")
    if inspect.isabstract(kind):
        abstract: frozenset[str] = kind.__abstractmethods__
        raise TypeError(f"it has no {', '.join(sorted(abstract))}")
    if unnamed := sorted(kind.roles.keys() - kind.usual.keys()):
        raise TypeError(f"its `usual` has no column names for {', '.join(unnamed)}")


_HERE = "peftlab.data.formats"

FORMATS: Registry[Format] = Registry(
    "peftlab.formats",
    f"{_HERE}.row_format:RowFormat",
    {
        "prodigy-text": f"{_HERE}.prodigy_text:ProdigyText",
        "label-studio-choices": f"{_HERE}.spans.label_studio:LabelStudioChoices",
        "pair": f"{_HERE}.classified:Pair",
        "text-label": f"{_HERE}.classified:TextLabel",
        "tokens-tags": f"{_HERE}.tokens_tags:TokensTags",
        "token-rows": f"{_HERE}.token_rows:TokenRows",
        "label-studio-spans": f"{_HERE}.spans.label_studio:LabelStudioSpans",
        "char-spans": f"{_HERE}.spans.char_spans:CharSpans",
        "squad": f"{_HERE}.squad:Squad",
        "qa-flat": f"{_HERE}.flat_answers:FlatAnswers",
        "tacred": f"{_HERE}.relations.tacred:Tacred",
        "opennre": f"{_HERE}.relations.opennre:OpenNRE",
        "relation": f"{_HERE}.relation:Relation",
        "messages": f"{_HERE}.chat:Messages",
        "sharegpt": f"{_HERE}.chat:ShareGPT",
        "alpaca": f"{_HERE}.chat:Alpaca",
        "translation": f"{_HERE}.translation:Translation",
        "text-summary": f"{_HERE}.plain:TextSummary",
        "prompt-completion": f"{_HERE}.plain:PromptCompletion",
        "text": f"{_HERE}.plain:Text",
    },
    check=_check,
)
"""Every format's class by name, in the order in which `data.format: auto` tries those of a task."""


def format_names() -> tuple[str, ...]:
    """Every format, in the order in which they are tried.

    Those of other packages come last, or before the ones that their `before` names.
    """
    names: list[str] = []
    for name, kind in FORMATS.items():
        later = [names.index(other) for other in kind.before if other in names]
        names.insert(min(later, default=len(names)), name)
    return tuple(names)


def formats_of(task: str) -> tuple[str, ...]:
    """The formats that serve a task, in the order in which they are tried."""
    return tuple(name for name in format_names() if task in FORMATS[name].tasks)


def roles_of(task: str, formats: Collection[str]) -> tuple[str, ...]:
    """The column roles that a task reads of these formats."""
    roles = (
        role
        for name in formats
        if name in FORMATS
        for role in FORMATS[name].roles
        if task not in FORMATS[name].not_read.get(role, ())
    )
    return tuple(dict.fromkeys(roles))
