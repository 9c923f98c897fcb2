"""The tasks: one tagged value, `task`, whose `name` says which keys it has.

A new task is its line in `TASKS`, a module here named after it with a subclass of `TaskOptions`,
and a module of the same name in `peftlab.tasks` with the class that does it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import BeforeValidator, Field

from peftlab.config.tasks.options import FormatName, LabelKind, TaskOptions

__all__ = ["TASKS", "FormatName", "LabelKind", "TaskConfig", "TaskOptions", "task_options"]

TASKS = (
    "text-classification",
    "token-classification",
    "question-answering",
    "relation-extraction",
    "causal-lm",
    "seq2seq",
)


def _options(name: str) -> type[TaskOptions]:
    module = import_module(f"{__name__}.{name.replace('-', '_')}")
    (found,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, TaskOptions)
        and value.__module__ == module.__name__
        and not value.__name__.startswith("_")
    )
    return found


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


_OPTIONS = {name: _options(name) for name in TASKS}

if TYPE_CHECKING:
    TaskConfig = TaskOptions
else:
    TaskConfig = Annotated[
        Annotated[Union[tuple(_OPTIONS.values())], Field(discriminator="name")],  # noqa: UP007
        BeforeValidator(_named),
    ]


def task_options() -> dict[str, type[TaskOptions]]:
    """Every task's options class by the task's name."""
    return dict(_OPTIONS)
