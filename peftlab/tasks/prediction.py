"""What every task's prediction needs: whole rows, and the model in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from peftlab.errors import DataError


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every module's own mode is put back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def check_rows(rows: Sequence[Mapping[str, Any]], needed: Sequence[str]) -> None:
    """Raise `DataError` for a row that lacks a text that prediction reads."""
    for number, row in enumerate(rows, start=1):
        for role in needed:
            if not isinstance(row.get(role), str) or not row[role].strip():
                raise DataError(
                    f"row {number} to predict has no {role!r}; each row needs {', '.join(needed)}."
                )
