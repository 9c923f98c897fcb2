"""Runs trained once a file, and command lines in this process, for what exports and inspects."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from peftlab.cli import main

WORDS = ("good", "bad")
Train = Callable[..., Any]


class Ran(NamedTuple):
    """What a command line came to."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """`cli("export", folder, "-o", out)`: runs a command line in this process."""

    def run(*words: object) -> Ran:
        capfd.readouterr()
        code = main([str(word) for word in words])
        result = Ran(code, *capfd.readouterr())
        assert "Traceback" not in result.err
        return result

    return run


@pytest.fixture(scope="module")
def trained(tiny_checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """`trained(family, method, **settings)`: a run, trained once for all tests of this file."""
    from peftlab import pipeline
    from peftlab.config import config_from_mapping

    folder = tmp_path_factory.mktemp("runs")
    for split, count in (("train", 24), ("validation", 8)):
        for name, row in (
            ("labels", lambda i: {"text": f"a {WORDS[i % 2]} film {i}", "label": WORDS[i % 2]}),
            ("answers", lambda i: {"prompt": f"name number {i}", "completion": f"a {i % 2} dog"}),
        ):
            (folder / name).mkdir(exist_ok=True)
            lines = "".join(json.dumps(row(i)) + "\n" for i in range(count))
            (folder / name / f"{split}.jsonl").write_text(lines)
    made: dict[str, Any] = {}

    def run(family: str, **method: Any) -> Any:
        key = json.dumps([family, method], sort_keys=True)
        if key not in made:
            causal = method["name"] == "qlora" or family == "llama"
            base = tiny_checkpoint(family, "causal") if causal else tiny_checkpoint(family)
            made[key] = pipeline.train(
                config_from_mapping(
                    {
                        "model": {"name": str(base), "dtype": "float32"},
                        "task": "causal-lm" if causal else "text-classification",
                        "data": {"source": str(folder / ("answers" if causal else "labels"))},
                        "method": method,
                        "train": {"max_steps": 6, "global_batch_size": 8, "learning_rate": 2e-2},
                        "eval": {"every": "never"},
                        "output": {"dir": str(folder / f"run-{len(made)}"), "plots": False},
                    }
                )
            )
        return made[key]

    return run
