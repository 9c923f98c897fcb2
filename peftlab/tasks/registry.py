"""Tasks by the name that a configuration gives them."""

from __future__ import annotations

import importlib

from peftlab.config.tasks import TASKS
from peftlab.errors import ConfigError
from peftlab.tasks.task import Task


def task_class(name: str) -> type[Task]:
    """The task called `name`: the one class of the module named after it that has its options.

    The module, and torch with it, is imported now. Raises `ConfigError` for a name that is none.
    """
    if name not in TASKS:
        raise ConfigError(f"task {name!r} is none of {', '.join(TASKS)}.")
    module = importlib.import_module(f"peftlab.tasks.{name.replace('-', '_')}")
    (found,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Task)
        and value.__module__ == module.__name__
        and not value.__name__.startswith("_")
    )
    return found
