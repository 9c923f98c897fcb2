"""Loads configurations written as text, and gives back the message where they are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from peftlab.config import RunConfig, load_config
from peftlab.errors import ConfigError

BASE = """\
model: {name: some/model}
task: text-classification
data: {source: rows.csv}
method: {name: lora}
"""


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., RunConfig]:
    """`load(text, *overrides, base=...)`: the configuration; `text` starts in line 5."""

    def loaded(text: str = "", *overrides: str, base: str = BASE) -> RunConfig:
        file = tmp_path / "run.yaml"
        file.write_text(base + text)
        return load_config(file, overrides).config

    return loaded


@pytest.fixture
def refusal(load: Callable[..., RunConfig], tmp_path: Path) -> Callable[..., str]:
    """As `load`, but the configuration must be refused; the message, without the folder."""

    def message(text: str = "", *overrides: str, base: str = BASE) -> str:
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides, base=base)
        assert caught.value.exit_code == 2
        said = str(caught.value).replace(f"{tmp_path}/", "")
        for leaked in ("pydantic", "Input should", "type=", "https://", "input_value", "literal["):
            assert leaked not in said
        return said

    return message
