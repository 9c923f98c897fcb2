"""A run resumes, and an adapter is continued, only on the base that it was trained on."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from peftlab import pipeline
from peftlab.config import config_from_mapping
from peftlab.errors import CheckFailed
from peftlab.training import curves

QUERY = "encoder.layer.1.attention.self.query.weight"
WORDS = ("good", "bad")
Configure = Callable[..., Any]


@pytest.fixture
def base(tiny_checkpoint: Any, tmp_path: Path) -> Path:
    """A checkpoint of this test's own."""
    folder: Path = shutil.copytree(tiny_checkpoint("bert"), tmp_path / "base")
    return folder


@pytest.fixture
def configure(base: Path, tmp_path: Path) -> Configure:
    data = tmp_path / "data"
    data.mkdir()
    for split, count in (("train", 24), ("validation", 8)):
        rows = [{"text": f"a {WORDS[i % 2]} film {i}", "label": WORDS[i % 2]} for i in range(count)]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))

    def make(name: str, **method: Any) -> Any:
        return config_from_mapping(
            {
                "model": {"name": str(base), "dtype": "float32"},
                "task": "text-classification",
                "data": {"source": str(data)},
                "method": {"name": "lora", "r": 2, "target_modules": ["query"], **method},
                "train": {"max_steps": 4, "global_batch_size": 8, "save_every": 2},
                "eval": {"every": "never"},
                "output": {"dir": str(tmp_path / name), "plots": False},
            }
        )

    return make


def change(base: Path, name: str) -> None:
    """Overwrite one value of a tensor of a checkpoint."""
    file = base / "model.safetensors"
    state = load_file(file)
    state[name].view(-1)[3] += 1
    save_file(state, file, metadata={"format": "pt"})


def interrupt(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train, and fail after the last checkpoint."""
    with monkeypatch.context() as broken:
        broken.setattr(curves, "write_log", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pipeline.train(config)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_is_not_resumed_on_another_base(
    method: str, configure: Configure, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure("run")
    if method == "full":
        config = config_from_mapping(
            {**config.model_dump(exclude_unset=True, mode="json"), "method": "full"}
        )
    interrupt(config, monkeypatch)
    change(base, QUERY)
    with pytest.raises(CheckFailed, match=f"{QUERY} has other values; restore the base") as caught:
        pipeline.train(config, resume="auto")
    assert "run.unfinished was begun on" in str(caught.value)
    unfinished = base.parent / "run.unfinished"
    assert [p.name for p in unfinished.glob("checkpoint-4")] == ["checkpoint-4"]
    assert not (base.parent / "run").exists()


def test_what_no_tensor_was_trained_on_may_differ_and_a_resumed_run_keeps_its_fingerprint(
    configure: Configure, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure("run")
    interrupt(config, monkeypatch)
    begun = (base.parent / "run.unfinished" / "adapter" / "peftlab.json").read_text()
    change(base, "encoder.layer.1.output.dense.weight")
    run = pipeline.train(config, resume="auto")
    assert (run.folder / "adapter" / "peftlab.json").read_text() == begun
    known = json.loads(begun)["fingerprint"]["tensors"]
    assert {name for name in known if name.endswith("weight")} == {
        QUERY, QUERY.replace("layer.1", "layer.0")
    }  # fmt: skip


def test_a_run_begun_without_a_fingerprint_resumes_with_a_warning(
    configure: Configure, base: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    config = configure("run")
    interrupt(config, monkeypatch)
    (base.parent / "run.unfinished" / "adapter" / "peftlab.json").unlink()
    with caplog.at_level(logging.WARNING, "peftlab"):
        run = pipeline.train(config, resume="auto")
    assert "run.unfinished has no fingerprint of its base" in caplog.text
    assert (run.folder / "adapter" / "peftlab.json").is_file()


def test_training_starts_from_an_adapter_on_its_own_base_only(
    configure: Configure, base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begun = pipeline.train(configure("begun")).folder / "adapter"
    again = configure("again", init_from=str(begun))
    with caplog.at_level(logging.WARNING, "peftlab"):
        pipeline.plan(again)
    assert "fingerprint" not in caplog.text

    for layer in (0, 1):
        change(base, QUERY.replace("layer.1", f"layer.{layer}"))
    for verb in (pipeline.plan, pipeline.train):
        with pytest.raises(CheckFailed, match=r"method\.init_from, .*was trained on") as caught:
            verb(again)
        assert str(caught.value).count("has other values") == 2
        assert "leave method.init_from out" in str(caught.value)
    assert not (base.parent / "again").exists()

    (begun / "peftlab.json").unlink()
    with caplog.at_level(logging.WARNING, "peftlab"):
        pipeline.plan(again)
    assert "has no fingerprint of its base" in caplog.text
