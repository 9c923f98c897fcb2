"""A task is an entry of the table and its own files: nothing else decides by its name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from peftlab.config.tasks.options import TASKS
from peftlab.errors import ConfigError
from peftlab.tasks.registry import task_class
from peftlab.tasks.task import Task

PACKAGE = Path(__file__).resolve().parents[2] / "peftlab"
SOURCES = sorted({*PACKAGE.rglob("*.py")} - {PACKAGE / "config" / "tasks" / "options.py"})


def decided_by_name(tree: ast.AST) -> Iterator[int]:
    """Lines that decide by a task's name: compared, matched, or the key of a mapping."""
    for node in ast.walk(tree):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            parts = [node.value]
        elif isinstance(node, ast.Dict):
            parts = list(node.keys)
        for part in (inner for one in parts if one is not None for inner in ast.walk(one)):
            if isinstance(part, ast.Constant) and part.value in TASKS:
                yield part.lineno


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_decides_by_the_name_of_a_task(path: Path) -> None:
    assert list(decided_by_name(ast.parse(path.read_text(encoding="utf-8")))) == []


def test_what_counts_as_deciding() -> None:
    code = "a = x == 'causal-lm'\nb = {'causal-lm': 1}\nc = x in ('text-classification',)\n"
    code += "match x:\n  case 'causal-lm':\n    pass\nd = 'causal-lm'\n"
    assert list(decided_by_name(ast.parse(code))) == [1, 2, 3, 5]


@pytest.mark.parametrize("name", TASKS)
def test_names_lead_to_both_classes(name: str) -> None:
    kind = task_class(name)
    assert issubclass(kind, Task)
    assert kind.options is TASKS[name]
    assert kind.__module__.rpartition(".")[2] == name.replace("-", "_")


def test_a_name_that_is_none() -> None:
    with pytest.raises(ConfigError, match="'causal_lm' is unknown"):
        task_class("causal_lm")
