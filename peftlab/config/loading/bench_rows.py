"""The rows of a bench: short names of methods, and `train` keys of one row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import ValidationError

from peftlab.config.checks import spellings
from peftlab.config.loading import keys
from peftlab.config.loading.problems import Problem, explain, mistaken
from peftlab.config.methods.options import METHODS, MethodOptions
from peftlab.config.schema import BenchRow, RunConfig, TrainConfig
from peftlab.errors import ConfigError


def parse_method(text: str, base: MethodOptions | None = None) -> MethodOptions:
    """The method that `head`, `last_n:2`, `lora:8`, `qlora8` or `full` names.

    What `base` says is kept where it applies, see `MethodOptions.from_short`. Raises `ConfigError`.
    """
    method = _parse(text, base)
    if isinstance(method, str):
        raise ConfigError(f"A method {method}.")
    return method


def _parse(text: str, base: MethodOptions | None) -> MethodOptions | str:
    """The method, or what is wrong with its name."""
    name, colon, argument = text.strip().partition(":")
    for kind in METHODS.values():
        if name in kind.short_names:
            try:
                method = kind.from_short(name, argument if colon else None, base)
            except ValidationError as invalid:
                return f"is {text!r}; {invalid.errors()[0]['msg']}"
            except ValueError as wrong:
                return f"is {text!r}; {wrong}"
            if method is not None:
                return method
    forms = ", ".join(kind.short_forms for kind in METHODS.values())
    return mistaken(text, forms, [name for kind in METHODS.values() for name in kind.short_names])


def row_training(base: TrainConfig, own: Mapping[str, object]) -> TrainConfig:
    """`train` with a row's own keys on top. Raises pydantic's `ValidationError`."""
    return TrainConfig.model_validate(_merged(base, own))


def _merged(base: TrainConfig, own: Mapping[str, object]) -> dict[str, object]:
    values: dict[str, object] = base.model_dump()
    for name, field in TrainConfig.model_fields.items():
        if any(spelling in own for spelling in spellings(name, field)):
            del values[name]
    return {**values, **own}


def check_bench(config: RunConfig) -> Iterator[Problem]:
    """A problem for each row of an unknown method, or with keys that `train` refuses."""
    for i, row in enumerate(config.bench.methods):
        path = ("bench", "methods", i)
        if isinstance(row, BenchRow):
            try:
                row_training(config.train, row.train)
            except ValidationError as invalid:
                merged = {"train": _merged(config.train, row.train)}
                errors = invalid.errors(include_url=False, include_input=False)
                for error in errors:
                    error["loc"] = ("train", *error["loc"])
                for problem in explain(errors, merged):
                    full = keys.dotted((*path, "train", ""))
                    message = problem.message.replace("did you mean train.", f"did you mean {full}")
                    yield Problem((*path, *problem.path), message)
            continue
        method = _parse(row, config.method)
        if isinstance(method, str):
            yield Problem(path, method)
