"""The kernels run in Triton's interpreter, which must be chosen before they are imported.

So these tests have a process of their own, which `test_in_a_process.py` starts. Alone:
`TRITON_INTERPRET=1 python -m pytest tests/kernels/triton`.
"""

from __future__ import annotations

import os
from pathlib import Path

HERE = Path(__file__).parent
COMPILED = {
    "test_in_a_process.py", "test_int8_on_gpu.py", "test_launching.py", "test_on_gpu.py",
}  # fmt: skip


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Without the interpreter there are its runner and the GPU's tests, with it the others."""
    if collection_path.parent != HERE or not collection_path.name.startswith("test_"):
        return None
    interpreting = os.environ.get("TRITON_INTERPRET") == "1"
    return True if (collection_path.name in COMPILED) == interpreting else None
