"""The kernels' pytest-benchmark suites: run by name, not part of the tests.

    pytest benchmarks/layers/kernels_*.py [--benchmark-json OUT] [--size full]

Beside its time each benchmark has its counts in `extra_info`: bytes saved, alive and moved, FLOPs,
operators. Nothing passes or fails by the clock; `tests/benchmarks` holds the counts to their bars.
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.result_files import cpu_kind, environment, has_bf16_units


def pytest_addoption(parser: pytest.Parser) -> None:
    """The size of the layers and the model."""
    parser.addoption("--size", choices=["small", "full"], default="small")


def pytest_configure(config: pytest.Config) -> None:
    """One setting of the allocator for every row."""
    from peftlab.measure.allocator import keep_large_buffers

    keep_large_buffers()


def pytest_report_header(config: pytest.Config) -> str:
    """The kind of processor, which decides what is fast."""
    units = "bf16" if has_bf16_units() else "fp32"
    return f"processor: {cpu_kind()}; layers are measured in {units}"


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: Any) -> None:
    """Record versions, threads, commit and the kind of processor with the results."""
    machine_info["peftlab"] = {"cpu_kind": cpu_kind(), **environment()}


@pytest.fixture
def small(request: pytest.FixtureRequest) -> bool:
    """Whether the sizes are the small ones, for which a whole suite takes a minute."""
    return bool(request.config.getoption("--size") == "small")
