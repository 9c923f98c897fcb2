"""The worked examples of `peftlab/tasks/README.md`, typed as they stand there, on real data.

Models are tiny ones of the same architecture, rows and steps are few; nothing else is changed.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import peftlab

README = Path(peftlab.__file__).parent / "tasks" / "README.md"
SHORT = (
    "train.max_steps=2", "train.global_batch_size=4", "train.micro_batch_size=auto",
    "data.max_train_samples=24", "data.max_eval_samples=6", "data.max_length=64",
    "output.plots=false",
)  # fmt: skip
MODELS = {
    # What the examples name: the architecture that stands in for it, and its kind of checkpoint.
    "sentence-transformers/all-MiniLM-L6-v2": ("bert", "classification"),
    "google-t5/t5-small": ("t5", "seq2seq"),
    "HuggingFaceTB/SmolLM2-135M": ("llama", "causal"),
}


@dataclass(frozen=True)
class Example:
    """A configuration file, and the commands that follow it."""

    file: str
    config: str
    commands: tuple[tuple[str, ...], ...]


def examples() -> Iterator[Example]:
    """Every YAML block that names its file, with the shell block after it."""
    text = README.read_text(encoding="utf-8")
    blocks = re.findall(r"```(\w*)\n(.*?)```", text, flags=re.DOTALL)
    for (kind, config), (after, script) in pairwise(blocks):
        named = re.match(r"# (\S+\.yaml)\n", config)
        if kind != "yaml" or named is None:
            continue
        assert after == "sh", f"{named[1]} is followed by no commands"
        words = [shlex.split(line, comments=True) for line in script.splitlines()]
        commands = tuple(tuple(parts[1:]) for parts in words if parts[:1] == ["peftlab"])
        yield Example(named[1], config, commands)


EXAMPLES = {example.file: example for example in examples()}


@pytest.mark.slow
@pytest.mark.parametrize("file", EXAMPLES)
def test_a_worked_example(
    file: str, shared_data: Path, tiny_checkpoint: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: Any,
) -> None:  # fmt: skip
    from peftlab.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(shared_data)
    config = EXAMPLES[file].config
    for name, (family, kind) in MODELS.items():
        if name in config:
            config = config.replace(name, str(tiny_checkpoint(family, kind)))
    (tmp_path / file).write_text(config)
    for words in EXAMPLES[file].commands:
        configured = [file] if file in words else []
        code = main([*words, *(SHORT if configured else ())])
        out, err = capfd.readouterr()
        assert code == 0, (words, err)
        assert out.strip(), words


def test_every_example_trains_evaluates_predicts_and_exports() -> None:
    for example in EXAMPLES.values():
        used = [words[0] for words in example.commands]
        assert set(used) >= {"data", "train", "eval", "predict", "export"}, example.file


def test_every_task_has_an_example() -> None:
    from peftlab.config.tasks.options import TASKS

    spoken = " ".join(example.config for example in EXAMPLES.values())
    assert [task for task in TASKS if task not in spoken] == []
