"""The rows of a bench: short names of methods, and `train` keys of one row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from peftlab.config.checks import spellings
from peftlab.config.loading import keys
from peftlab.config.loading.problems import Problem, explain, mistaken
from peftlab.config.schema import (
    BenchRow,
    FullMethod,
    HeadMethod,
    LastNMethod,
    LoraMethod,
    MethodConfig,
    QLoraMethod,
    RunConfig,
    TrainConfig,
)
from peftlab.errors import ConfigError

FORMS = "head, last_n or last_n:N, lora or lora:R, qlora8 or qlora8:R, qlora4 or qlora4:R, full"


def parse_method(text: str, base: MethodConfig | None = None) -> MethodConfig:
    """The method that `head`, `last_n:2`, `lora:8`, `qlora8` or `full` names.

    What `base` says is kept where it applies: a method keeps its own settings, and lora and qlora
    also take each other's, so that the two differ in the base model alone. Another rank keeps the
    scaling, alpha / r. Raises `ConfigError`.
    """
    found = _parse(text, base)
    if isinstance(found, str):
        raise ConfigError(f"A method {found}.")
    return found


def _parse(text: str, base: MethodConfig | None) -> MethodConfig | str:
    """The method, or what is wrong with its name."""
    name, colon, number = text.strip().partition(":")
    amount = int(number) if number.isdecimal() and len(number) < 10 else None
    wrong = mistaken(text, FORMS, ["head", "last_n", "lora", "qlora8", "qlora4", "full"])
    if colon and (not amount or name in {"head", "full"}):
        return wrong
    try:
        match name:
            case "head":
                return base if isinstance(base, HeadMethod) else HeadMethod(name="head")
            case "full":
                return FullMethod(name="full")
            case "last_n":
                configured = base.n if isinstance(base, LastNMethod) else 2
                return LastNMethod(name="last_n", n=amount or configured)
            case "lora":
                return _adapter(LoraMethod, amount, base)
            case "qlora":
                return _adapter(QLoraMethod, amount, base)
            case "qlora8" | "qlora4":
                return _adapter(QLoraMethod, amount, base, bits=int(name[-1]))
    except ValidationError:
        return f"is {text!r}; the rank is from 1 to 256"
    return wrong


def _adapter(
    kind: type[LoraMethod] | type[QLoraMethod],
    rank: int | None,
    base: MethodConfig | None,
    *,
    bits: int | None = None,
) -> MethodConfig:
    settings: dict[str, Any] = {}
    if isinstance(base, LoraMethod | QLoraMethod):
        shared = base.model_dump(exclude_unset=True)
        settings = {key: shared[key] for key in shared if key in kind.model_fields}
    settings["name"] = keys.tag_of(kind)
    if bits is not None:
        settings["bits"] = bits
    if bits == 4:  # the arithmetic is one of 8-bit layers
        settings = {k: v for k, v in settings.items() if k not in {"arithmetic", "error_tolerance"}}
    method = kind.model_validate(settings)
    if rank is None:
        return method
    return kind.model_validate({**settings, "r": rank, "alpha": method.alpha * rank / method.r})


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
    """A problem for each row that names no method or has keys or values that `train` has not."""
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
        found = _parse(row, config.method)
        if isinstance(found, str):
            yield Problem(path, found)
