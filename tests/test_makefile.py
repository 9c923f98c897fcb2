"""What `make` does with words that mean something to it or to a shell; what `make test` runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
MAKE = shutil.which("make")

pytestmark = pytest.mark.skipif(MAKE is None, reason="make is not installed")


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A folder like .venv, whose interpreter says what it was given, one argument a line."""
    python = tmp_path / "an environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    return python.parent.parent


def demo(environment: Path, *words: str, **variables: str) -> list[str]:
    done = subprocess.run(
        ["make", "--no-print-directory", "-s", "-o", "venv", "-o", "model", "demo",
         f"VENV={environment}", f"PYTHON={sys.executable}", *words],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
        env={"PATH": os.environ["PATH"], **variables},
    )  # fmt: skip
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "text",
    ["So so.", 'it\'s "quoted"', "costs $5 or $(id) or $HOME", "`id` \\ #1, 100 %; exit 3 & *"],
)
def test_a_sentence_reaches_the_demo_as_it_was_typed(text: str, environment: Path) -> None:
    said = ["-m", "peftlab", "demo", "--text", text]
    assert demo(environment, f"TEXT={text}") == said
    assert demo(environment, TEXT=text) == said


def test_without_a_sentence_there_is_no_flag(environment: Path) -> None:
    assert demo(environment) == ["-m", "peftlab", "demo"]


def test_every_test_is_run_by_make_test() -> None:
    """The suite, and with Triton's interpreter the folder that the suite leaves to it."""
    done = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "-o", "venv", "-o", "model", "test"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    runs = [line for line in done.stdout.splitlines() if "-m pytest" in line]
    assert len(runs) == 2
    suite, interpreter = runs
    assert not suite.startswith("TRITON_INTERPRET")
    assert "tests/" not in suite
    assert "-m " not in suite.replace("-m pytest", "")
    assert interpreter.startswith("TRITON_INTERPRET=1 ")
    assert interpreter.endswith(" tests/kernels/triton")
