"""Task classes by the task's name in the configuration."""

from __future__ import annotations

from peftlab.config.registry import implementation
from peftlab.config.tasks.options import TASKS
from peftlab.errors import ConfigError
from peftlab.tasks.task import Task


def task_class(name: str) -> type[Task]:
    """The task called `name`.

    Its module, and torch with it, is imported now. Raises `ConfigError` for an unknown name,
    or one whose class cannot be imported.
    """
    if name not in TASKS:
        raise ConfigError(f"task {name!r} is unknown; the tasks are {', '.join(TASKS)}.")
    kind: type[Task] = implementation("task.name", name, TASKS[name].implementation)
    return kind
