"""Checks of values that types and limits cannot express; the schema's validators call them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import AliasChoices
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

AT_KEY = "peftlab_at_key"
"""Error type of `problem_at`."""

_UNITS = {"": 1, "b": 1} | {
    f"{prefix}{ending}": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for ending, base in (("ib", 1024), ("b", 1000))
}


def problem_at(key: str, message: str) -> PydanticCustomError:
    """An error of a whole section that is laid to one of its keys; `message` follows the key."""
    return PydanticCustomError(AT_KEY, "{key} {message}", {"key": key, "message": message})


def parse_bytes(text: str) -> int:
    """`2GiB`, `500 MB` or plain `1048576` in bytes. Raises `ValueError`."""
    size = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if size is None or size[2].lower() not in _UNITS:
        raise ValueError(f"{text!r} is no size; write 500MB or 2GiB")
    return int(float(size[1]) * _UNITS[size[2].lower()])


def check_bytes(text: str) -> str:
    """`text`, if it is a size."""
    try:
        parse_bytes(text)
    except ValueError:
        raise PydanticCustomError("size", "a size such as 500MB or 2GiB") from None
    return text


def spellings(name: str, field: FieldInfo) -> tuple[str, ...]:
    """The names under which a key may be written, its own first."""
    if isinstance(field.validation_alias, AliasChoices):
        return tuple(str(choice) for choice in field.validation_alias.choices)
    return (name,)


def refuse_both_spellings(data: Any, fields: Mapping[str, FieldInfo]) -> None:
    """Raise where one key is written under two of its names."""
    if not isinstance(data, Mapping):
        return
    for name, field in fields.items():
        written = [spelling for spelling in spellings(name, field) if spelling in data]
        if len(written) > 1:
            raise problem_at(
                written[1], f"is another spelling of {written[0]}, which is set too; keep one"
            )


def refuse_ratio(data: Any) -> None:
    """Raise where `warmup_ratio` is no fraction: 1 and more mean steps under `warmup_steps`."""
    ratio = data.get("warmup_ratio") if isinstance(data, Mapping) else None
    if isinstance(ratio, int | float) and not isinstance(ratio, bool) and ratio >= 1:
        raise problem_at(
            "warmup_ratio",
            f"is {ratio}; allowed: a fraction of all steps, below 1; "
            "a number of steps is written warmup_steps",
        )


def number_after_colon(argument: str) -> int | None:
    """A positive number of up to nine digits, or None."""
    return int(argument) or None if argument.isdecimal() and len(argument) < 10 else None
