"""Fixtures of the fusion tests."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peftlab_kernels import functional


class Calls(list[tuple[int, ...]]):
    """The shapes of x that an adapted layer's kernels were called with."""

    def take(self) -> int:
        """The number of calls since the last `take`."""
        number = len(self)
        self.clear()
        return number


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Every call of `lora_linear` with an adapter: a layer that fell back makes none."""
    seen = Calls()
    real = functional.lora_linear

    def spy(x: torch.Tensor, weight: Any, lora_a: Any = None, *args: Any, **kwargs: Any) -> Any:
        if lora_a is not None:
            seen.append(tuple(x.shape))
        return real(x, weight, lora_a, *args, **kwargs)

    monkeypatch.setattr(functional, "lora_linear", spy)
    return seen
