"""8-bit runs: the arithmetic that training chose is saved, and is what every later answer uses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftlab import pipeline
from peftlab.config import config_from_mapping
from peftlab.errors import CheckFailed, ConfigError
from peftlab.pipeline.fusing import VERDICTS
from peftlab.run_folder import RECORD


def configured(checkpoint: Path, folder: Path, name: str = "run", **method: Any) -> Any:
    data = folder / "data"
    if not data.exists():
        data.mkdir()
        for split, count in (("train", 48), ("validation", 8), ("test", 8)):
            lines = [
                json.dumps({"prompt": f"name number {i}", "completion": f"a {i % 2} dog"})
                for i in range(count)
            ]
            (data / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return config_from_mapping(
        {
            "model": {"name": str(checkpoint)},
            "task": "causal-lm",
            "data": {"source": str(data)},
            "method": {"name": "qlora", "r": 4, **method},
            "train": {"num_train_epochs": 1, "global_batch_size": 8, "learning_rate": 5e-3},
            "eval": {"every": "never", "generation": {"max_new_tokens": 4}},
            "output": {"dir": str(folder / name), "plots": False},
        }
    )


@pytest.fixture
def checkpoint(tiny_checkpoint: Any) -> Path:
    saved: Path = tiny_checkpoint("llama", "causal", dtype="float32")
    return saved


def test_verdicts_are_saved_shown_and_replayed(checkpoint: Path, tmp_path: Path) -> None:
    run = pipeline.train(configured(checkpoint, tmp_path))
    kept = json.loads((run.folder / VERDICTS).read_text())
    shown = run.record["fusion"]["int8"]
    assert kept == shown
    assert len(kept) == 2 * 7
    assert {layer["arithmetic"] for layer in kept.values()} <= {"w8a8", "w8a16"}
    assert all(layer["decided"] for layer in kept.values())
    assert any(layer["backward_error"] for layer in kept.values())

    reopened = pipeline.open_run(run.folder)
    assert reopened.evaluate("test")["loss"] == run.metrics["test"]["loss"]

    flipped = {
        name: layer | {"arithmetic": "w8a16" if layer["arithmetic"] == "w8a8" else "w8a8"}
        for name, layer in kept.items()
    }
    (run.folder / VERDICTS).write_text(json.dumps(flipped))
    # The golden examples would notice: where codes have 7 bits the arithmetics differ visibly.
    record = json.loads((run.folder / RECORD).read_text())
    (run.folder / RECORD).write_text(json.dumps(record | {"golden": None}))
    other = pipeline.open_run(run.folder).evaluate("test")["loss"]
    assert other != run.metrics["test"]["loss"]
    assert other == pytest.approx(run.metrics["test"]["loss"], rel=1e-2)


def test_too_few_batches_to_decide_stay_with_w8a16(checkpoint: Path, tmp_path: Path) -> None:
    config = configured(checkpoint, tmp_path)
    short = config.model_copy(update={"train": config.train.model_copy(update={"max_steps": 2})})
    run = pipeline.train(short)
    kept = json.loads((run.folder / VERDICTS).read_text())
    assert {layer["arithmetic"] for layer in kept.values()} == {"w8a16"}
    assert pipeline.open_run(run.folder).evaluate("test")["loss"] == run.metrics["test"]["loss"]


@pytest.mark.parametrize("arithmetic", ["w8a8", "w8a16"])
def test_an_explicit_demand_is_obeyed(arithmetic: str, checkpoint: Path, tmp_path: Path) -> None:
    run = pipeline.train(configured(checkpoint, tmp_path, arithmetic=arithmetic))
    assert {layer["arithmetic"] for layer in run.record["fusion"]["int8"].values()} == {arithmetic}
    assert pipeline.open_run(run.folder).evaluate("test")["loss"] == run.metrics["test"]["loss"]


def test_a_damaged_file_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    run = pipeline.train(configured(checkpoint, tmp_path))
    for text, message in (
        ("{", "int8_arithmetic.json"),
        ('{"nowhere": {"arithmetic": "w8a8"}}', "nowhere"),
        ('{"nowhere": "w8a8"}', "must name an 8-bit layer"),
    ):
        (run.folder / VERDICTS).write_text(text)
        with pytest.raises(CheckFailed, match=message):
            pipeline.open_run(run.folder).evaluate("test")


def test_kernels_off_computes_w8a16_and_refuses_w8a8(checkpoint: Path, tmp_path: Path) -> None:
    def without_kernels(config: Any) -> Any:
        return config.model_copy(
            update={"train": config.train.model_copy(update={"kernels": "off"})}
        )

    with pytest.raises(ConfigError, match=r"set train.kernels=auto, or method.arithmetic=w8a16"):
        pipeline.train(without_kernels(configured(checkpoint, tmp_path, arithmetic="w8a8")))
    assert not (tmp_path / "run").exists()
    run = pipeline.train(without_kernels(configured(checkpoint, tmp_path, dropout=0.0)))
    assert run.record["fusion"] is None
    settings = {"arithmetic": "w8a16", "dropout": 0.0}
    fused = pipeline.train(configured(checkpoint, tmp_path, "fused", **settings))
    assert fused.metrics["test"]["loss"] == pytest.approx(run.metrics["test"]["loss"], rel=2e-3)
