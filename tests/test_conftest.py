"""The suite runs on a CPU unless GPU tests are asked for, and on poisoned memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent
PROBE = """
import os

import pytest


@pytest.mark.parametrize("n", [0])
@pytest.mark.gpu
def test_visible(n):
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == {expected!r}
"""


@pytest.mark.parametrize(
    ("asked", "expected"), [((), ""), (("-m", "gpu"), "3"), (("-m", "gpu or slow"), "3")]
)
def test_gpus_are_hidden_unless_asked_for(
    asked: tuple[str, ...], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "test_probe.py"
    file.write_text(PROBE.format(expected=expected))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-c",
         str(REPOSITORY / "pyproject.toml"), *asked, str(file)],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_empty_makes_is_poisoned() -> None:
    like = torch.zeros(2, 3)
    for made in (torch.empty(2, 3), torch.empty_like(like), like.new_empty(2, 3)):
        assert made.isnan().all()
    assert like.new_empty(2, dtype=torch.int64).dtype is torch.int64
