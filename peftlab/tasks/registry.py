"""Tasks by the name that a configuration gives them."""

from __future__ import annotations

import importlib

from peftlab.errors import ConfigError
from peftlab.tasks.task import Task

# Names, not classes: a task's module, and torch with it, is imported when the task is wanted.
_TASKS = {
    "text-classification": ("peftlab.tasks.text_classification", "TextClassification"),
    "causal-lm": ("peftlab.tasks.causal_lm", "CausalLM"),
}


def task_class(name: str) -> type[Task]:
    """The task called `name`. Raises `ConfigError` for a name that is none."""
    if name not in _TASKS:
        raise ConfigError(f"task {name!r} is none of {', '.join(_TASKS)}.")
    module, attribute = _TASKS[name]
    task: type[Task] = getattr(importlib.import_module(module), attribute)
    return task
