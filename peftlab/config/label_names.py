"""The type of `data.label_names`: texts, each once; numbers are their digits."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from peftlab.config.section import Names


def _as_texts(names: Any) -> Any:
    if not isinstance(names, list):
        return names
    return [str(n) if isinstance(n, int) and not isinstance(n, bool) else n for n in names]


def _each_once(names: list[str]) -> list[str]:
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"names {twice!r} twice")
    return names


LabelNames = Annotated[Names, BeforeValidator(_as_texts), AfterValidator(_each_once)]
