"""Runs the tests beside this file in a process whose Triton interprets its kernels."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]


def test_kernels_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no"]
    ran = subprocess.run(
        [*command, str(Path(__file__).parent.relative_to(REPOSITORY))],
        cwd=REPOSITORY, env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True, text=True, timeout=800,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed is not None
    assert int(passed[1]) > 100, "the interpreter's process collected too little"
    assert "skipped" not in ran.stdout
