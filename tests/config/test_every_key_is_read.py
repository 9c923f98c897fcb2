"""A configuration key that no code reads would be a promise that nobody keeps."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from pydantic import create_model

from tests.config.reads import Reads, every_section

Key = tuple[str, str]
PACKAGE = Path(__file__).resolve().parents[2] / "peftlab"

# Handed on whole, as keyword arguments of a library, by `model_dump()` on the section.
HANDED_ON = {"GenerationConfig"}
# What `bench` itself is asked; all other keys must be read by what it runs.
OF_BENCH = {"BenchConfig", "BenchRow"}


def modules(*folders: str) -> list[ast.Module]:
    """The package's source, without those folders."""
    left_out = {PACKAGE / folder for folder in folders}
    return [
        ast.parse(path.read_text(encoding="utf-8"), str(path))
        for path in sorted(PACKAGE.rglob("*.py"))
        if left_out.isdisjoint(path.parents)
    ]


@pytest.fixture(scope="module")
def everything() -> list[ast.Module]:
    return modules("config")


@pytest.fixture(scope="module")
def running() -> list[ast.Module]:
    """Without those who show a configuration rather than act on it."""
    return modules("config", "bench", "cli")


def unread(reads: Reads) -> set[Key]:
    return {
        (name, key)
        for name, section in reads.sections.items()
        if not (name in HANDED_ON and name in reads.dumped)
        for key in section.model_fields
    } - reads.keys


def test_every_key_is_read(everything: list[ast.Module], running: list[ast.Module]) -> None:
    assert unread(Reads().of(everything)) == set(), "these keys are read by nothing"
    by_runs = {key for key in unread(Reads().of(running)) if key[0] not in OF_BENCH}
    assert by_runs - {("RunConfig", "bench")} == set(), "these are read by no run"


@pytest.mark.parametrize("key", ["name", "seed", "dir", "n", "source", "every", "task", "added"])
def test_a_key_that_is_added_and_not_read_is_found(key: str, everything: list[ast.Module]) -> None:
    sections = every_section()
    grown = {name for name, section in sections.items() if key not in section.model_fields}
    for name in grown:
        sections[name] = create_model(name, __base__=sections[name], **{key: (int, 1)})
    assert unread(Reads(sections).of(everything)) == {(n, key) for n in grown - HANDED_ON}


def test_what_counts_as_a_read() -> None:
    source = """
class Plan:
    config: "RunConfig"

def steps(config: RunConfig, plans: Sequence[Plan]) -> TrainConfig:
    train, data = config.train, config.data
    train.seed = 1
    for plan in plans:
        print(plan.config.output.dir, data.splits.test)
    return train

def more(config: RunConfig, seed: int) -> None:
    found = steps(config, [])
    print(found.optim, seed, config.seed, other.model.name)
    for row in config.bench.methods:
        print(row.label)
"""
    found = Reads().of([ast.parse(source)]).keys
    whole = {("RunConfig", name) for name in ("train", "data", "output", "bench")}
    assert found - whole == {
        ("OutputConfig", "dir"),
        ("DataConfig", "splits"),
        ("SplitsConfig", "test"),
        ("TrainConfig", "optim"),
        ("BenchConfig", "methods"),
        ("BenchRow", "label"),
    }
