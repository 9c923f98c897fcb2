"""A configuration to bench, and jobs that a worker finds by name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from peftlab.config.schema import RunConfig


@pytest.fixture
def fake_jobs(monkeypatch: pytest.MonkeyPatch) -> str:
    """The importable name of the fake jobs, for the worker too; no torch in this process."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    environment = ModuleType("peftlab.measure.environment")
    vars(environment)["describe_environment"] = lambda: {"python": "3.11"}
    monkeypatch.setitem(sys.modules, environment.__name__, environment)
    return "fake_jobs"


@pytest.fixture
def config_of() -> Callable[..., RunConfig]:
    """Makes a configuration with the given `bench` section; other sections by name."""

    def make(bench: dict[str, Any], **sections: Any) -> RunConfig:
        mapping: dict[str, Any] = {
            "model": {"name": "some/model"},
            "task": "text-classification",
            "data": {"source": "rows.csv"},
            "method": {"name": "lora", "r": 4, "alpha": 8, "dropout": 0.0},
            "bench": bench,
        }
        return RunConfig.model_validate(mapping | sections)

    return make
