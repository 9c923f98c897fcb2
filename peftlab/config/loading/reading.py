"""Which keys, column roles and metrics a task and a method read; setting others is an error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from peftlab.config.loading.problems import Problem, shown
from peftlab.config.loading.source import KeyPath
from peftlab.config.methods.options import METHODS, MethodOptions
from peftlab.config.schema import RunConfig
from peftlab.config.section import ReadBy, Section
from peftlab.config.tasks.options import TASKS, TaskOptions
from peftlab.errors import did_you_mean


def who_reads(section: type[Section], name: str) -> ReadBy | None:
    """The mark of a key that only some tasks or methods read."""
    metadata = section.model_fields[name].metadata
    return next((mark for mark in metadata if isinstance(mark, ReadBy)), None)


def why_unread(mark: ReadBy | None, task: TaskOptions, method: MethodOptions) -> str | None:
    """Why nothing would read a key, or None where it is read."""
    if mark is None:
        return None
    if mark.by == "task" and mark.key not in task.reads:
        readers = [name for name, kind in TASKS.items() if mark.key in kind.reads]
        return f"is read by task {' and '.join(readers)} only, and task is {task.name}"
    if mark.by == "method" and mark.key not in method.reads:
        readers = [name for name, kind in METHODS.items() if mark.key in kind.reads]
        return f"is read by method {', '.join(readers)} only, and method.name is {method.name}"
    return None


def unread(config: RunConfig) -> Iterator[Problem]:
    """A problem for every key that is set, be it to its default, and that nothing reads."""
    yield from _unread(config, (), config.task, config.method)


def _unread(
    section: Section, path: KeyPath, task: TaskOptions, method: MethodOptions
) -> Iterator[Problem]:
    for name in type(section).model_fields:
        if name not in section.model_fields_set:
            continue
        value = getattr(section, name)
        here = (*path, name)
        why = why_unread(who_reads(type(section), name), task, method)
        if why is not None:
            yield Problem(here, why)
        elif isinstance(value, Section):
            yield from _unread(value, here, task, method)
        elif isinstance(value, list):
            for i, item in enumerate(value):
                if isinstance(item, Section):
                    yield from _unread(item, (*here, i), task, method)


def check_metrics(config: RunConfig) -> Iterator[Problem]:
    """A problem for each metric that the task does not report."""
    known = tuple(config.task.metrics)
    named: list[tuple[KeyPath, str]] = []
    if config.eval.best != "auto":
        named.append((("eval", "best"), config.eval.best))
    if config.eval.metrics != "auto":
        named += [(("eval", "metrics", i), name) for i, name in enumerate(config.eval.metrics)]
    for path, name in named:
        if name not in known:
            yield Problem(path, _not_among(name, known, f"{config.task.name} reports"))


def check_validation(config: RunConfig) -> Iterator[Problem]:
    """A problem for early stopping without a validation split."""
    patience = config.eval.early_stopping_patience
    if patience is not None and config.data.splits.validation is None:
        yield Problem(
            ("eval", "early_stopping_patience"),
            f"is {patience}, but data.splits.validation is null: early stopping needs its metric",
        )


def check_scope(config: RunConfig) -> Iterator[Problem]:
    """A problem for penalising the adapter of a method that has none."""
    if config.regularization.scope == "adapter" and not config.method.has_adapter:
        yield Problem(
            ("regularization", "scope"),
            f"is adapter, but method {config.method.name} trains none; allowed: head, trainable",
        )


def check_method(config: RunConfig) -> Iterator[Problem]:
    """A problem for each shared key whose value the method cannot work with."""
    found = config.method.problems(
        packing=config.data.packing, gradient_checkpointing=config.train.gradient_checkpointing
    )
    for key, message in found.items():
        yield Problem(tuple(key.split(".")), message)


def check_roles(config: RunConfig) -> Iterator[Problem]:
    """A problem for each role in `data.columns` that the task does not know."""
    known = config.task.roles
    for role in config.data.columns:
        if role not in known:
            hint = did_you_mean(role, {name: f"data.columns.{name}" for name in known})
            allowed = f"the roles of {config.task.name} are {', '.join(known)}"
            yield Problem(("data", "columns", role), f"is no role{hint or ';'} {allowed}")


def check_format(config: RunConfig) -> Iterator[Problem]:
    """A problem for a format of rows that the task does not take."""
    name, taken = config.data.format, config.task.formats
    if name != "auto" and name not in taken:
        yield Problem(("data", "format"), _not_among(name, taken, f"{config.task.name} takes"))


def _not_among(name: str, known: tuple[str, ...], what: str) -> str:
    hint = did_you_mean(name, known, cutoff=0.4)
    return f"is {shown(name)}{hint or ';'} {what} {', '.join(known)}"


def read_mapping(section: Section, task: TaskOptions, method: MethodOptions) -> dict[str, Any]:
    """A section as plain values, without the keys that nothing reads."""
    values: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if why_unread(who_reads(type(section), name), task, method) is not None:
            continue
        values[name] = _plain(value, task, method)
    return values | (section.model_extra or {})


def _plain(value: Any, task: TaskOptions, method: MethodOptions) -> Any:
    if isinstance(value, Section):
        return read_mapping(value, task, method)
    if isinstance(value, list):
        return [_plain(item, task, method) for item in value]
    return dict(value) if isinstance(value, dict) else value
