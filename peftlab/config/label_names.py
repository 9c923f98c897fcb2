"""The type of `data.label_names`: texts; numbers are their digits."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator

from peftlab.config.section import Names


def _as_texts(names: Any) -> Any:
    if not isinstance(names, list):
        return names
    return [str(n) if isinstance(n, int) and not isinstance(n, bool) else n for n in names]


LabelNames = Annotated[Names, BeforeValidator(_as_texts)]
