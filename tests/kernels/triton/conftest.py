"""The kernels run in Triton's interpreter, which must be chosen before they are imported.

So these tests have processes of their own: `make interpreter`, which `make test` runs too, or
`TRITON_INTERPRET=1 python -m pytest tests/kernels/triton`.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.quick_interpreter import remember

HERE = Path(__file__).parent
COMPILED = {"test_int8_on_gpu.py", "test_launching.py", "test_on_gpu.py"}
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"

if INTERPRETING:
    remember()


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Without the interpreter only the GPU's tests and the launcher's, with it the others."""
    if collection_path.parent != HERE or not collection_path.name.startswith("test_"):
        return None
    return True if (collection_path.name in COMPILED) == INTERPRETING else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """The interpreter needs no device: a test that is skipped there fails."""
    report = yield
    if INTERPRETING and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped in the interpreter: {report.longrepr}"
    return report
