"""Runs on 16-bit checkpoints on a CPU without bf16 units: arithmetic is fp32."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftlab import pipeline
from peftlab.config import config_from_mapping
from peftlab.fusion.fp32.frozen_linear import FrozenConv1D, FrozenLinear
from peftlab.model import precision
from peftlab.pipeline.untuned import evaluate_untuned
from peftlab_kernels.eager.int8_backend import EagerInt8Kernels
from tests.fusion.sixteen_bits import SixteenBitOutputs

METHODS: dict[str, dict[str, Any]] = {
    "head": {"name": "head"},
    "last_n": {"name": "last_n", "n": 1},
    "lora": {"name": "lora", "r": 4, "dropout": 0.0},
    "full": {"name": "full"},
}
WORDS = ("good", "bad")
Configure = Callable[..., Any]


@pytest.fixture(autouse=True)
def no_16bit_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_has_bf16_units", lambda: False)


@pytest.fixture
def configure(tiny_checkpoint: Any, tmp_path: Path) -> Configure:
    """`configure(name, task, family, dtype, **sections)`: a configuration with data of its own."""

    def make(name: str, task: str, family: str, dtype: str = "bfloat16", **sections: Any) -> Any:
        folder = tmp_path / task
        if not folder.exists():
            folder.mkdir()
            for split, count in (("train", 24), ("validation", 8), ("test", 8)):
                lines = [
                    json.dumps(
                        {"text": f"a {WORDS[i % 2]} film , number {i}", "label": WORDS[i % 2]}
                        if task == "text-classification"
                        else {"prompt": f"name number {i}", "completion": f"a {WORDS[i % 2]} dog"}
                    )
                    for i in range(count)
                ]
                (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
        kind = "classification" if task == "text-classification" else "causal"
        base: dict[str, Any] = {
            "model": {"name": str(tiny_checkpoint(family, kind, dtype=dtype))},
            "task": task,
            "data": {"source": str(folder)},
            "method": METHODS["lora"],
            "train": {"num_train_epochs": 2, "global_batch_size": 8, "learning_rate": 5e-3},
            "output": {"dir": str(tmp_path / name), "plots": False},
        }
        if kind == "causal":
            base["eval"] = {"generation": {"max_new_tokens": 8}}
        return config_from_mapping(base | sections)

    return make


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "llama"])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_rests_in_16_bits_and_answers_in_fp32(
    method: str, family: str, configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    dtype = "float16" if family == "gpt2" else "bfloat16"
    with caplog.at_level("INFO", "peftlab"):
        run = pipeline.train(
            configure("run", "text-classification", family, dtype, method=METHODS[method])
        )
    assert (run.record["model"]["at_rest"], run.record["model"]["compute"]) == (dtype, "float32")
    assert f"frozen weights stay in {dtype}, arithmetic and activations are float32" in caplog.text
    train = run.metrics["train"]
    share = train["peak_memory"]["weights"] / (4 * train["total_parameters"])
    assert share >= 0.99 if method == "full" else share < 0.9

    reopened = pipeline.open_run(run.folder)
    model: Any = reopened.loaded.model
    swapped = [m for m in model.modules() if isinstance(m, (FrozenLinear, FrozenConv1D))]
    assert bool(swapped) is (method != "full")
    seen = SixteenBitOutputs().watch(model)
    again = reopened.evaluate("test")
    assert seen == []
    assert again["loss"] == pytest.approx(run.metrics["test"]["loss"], rel=1e-5)
    texts = ["a good film", "a bad film", "number"]
    for first, second in zip(run.predict(texts), reopened.predict(texts), strict=True):
        assert first["label"] == second["label"]
        assert first["probability"] == pytest.approx(second["probability"], abs=1e-5)


def losses(run: Any) -> list[float]:
    """Every loss of a run's log, and those at its end."""
    rows = (run.folder / "log.csv").read_text().splitlines()
    names = rows[0].split(",")
    result = [
        float(value)
        for row in rows[1:]
        for name, value in zip(names, row.split(","), strict=True)
        if value and "loss" in name
    ]
    return [*result, run.metrics["train"]["loss"], run.metrics["test"]["loss"]]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("method", METHODS)
def test_training_is_that_of_the_fp32_model(method: str, family: str, configure: Configure) -> None:
    if (method, family) == ("head", "gpt2"):
        pytest.skip("GPT-2's head is tied")
    settings = dict(METHODS[method])
    if method == "lora":
        # A fresh adapter is drawn in the base's dtype: let both start from one that is saved.
        begun = pipeline.train(
            configure("begun", "causal-lm", family, method=settings, train={"max_steps": 1})
        )
        settings["init_from"] = str(begun.folder / "adapter")
    runs = [
        pipeline.train(configure(f"run-{n}", "causal-lm", family, method=settings, **sections))
        for n, sections in enumerate(({}, {"model": wide_model(configure, family)}))
    ]
    assert [run.record["model"]["at_rest"] for run in runs] == ["bfloat16", "float32"]
    sixteen, wide = map(losses, runs)
    assert len(sixteen) > 4
    assert sixteen == pytest.approx(wide, rel=1e-5)
    first, second = (run.predict(["name number 3", "name"]) for run in runs)
    assert first == second


def wide_model(configure: Configure, family: str) -> dict[str, Any]:
    """The same checkpoint, requested in fp32."""
    return {"name": configure("-", "causal-lm", family).model.name, "dtype": "float32"}


def test_a_killed_run_resumes_to_the_same_bits(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peftlab.tasks.language.causal_lm import CausalLM

    whole = pipeline.train(configure("whole", "causal-lm", "llama", method=METHODS["lora"]))
    train = {"num_train_epochs": 2, "global_batch_size": 8, "learning_rate": 5e-3, "save_every": 2}
    config = configure("cut", "causal-lm", "llama", method=METHODS["lora"], train=train)
    seen = 0
    count_items = CausalLM.count_items

    def killed(self: CausalLM, batch: Any) -> int:
        nonlocal seen
        seen += 1
        if seen == 5:
            raise MemoryError("killed in step 5 of 6")
        return count_items(self, batch)

    with monkeypatch.context() as broken:
        broken.setattr(CausalLM, "count_items", killed)
        with pytest.raises(MemoryError):
            pipeline.train(config)
    resumed = pipeline.train(config, resume="auto")
    name = "adapter/adapter_model.safetensors"
    a, b = load_file(whole.folder / name), load_file(resumed.folder / name)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_planning_sees_the_same_precision(configure: Configure) -> None:
    for method in METHODS.values():
        plan = pipeline.plan(configure("run", "text-classification", "t5", method=method))
        assert plan.dtypes == {"at_rest": "bfloat16", "compute": "float32"}
        assert any("arithmetic and activations are float32" in note for note in plan.notes)


def test_the_untuned_base_is_evaluated_in_fp32(configure: Configure) -> None:
    config = configure("run", "causal-lm", "llama")
    result = evaluate_untuned(config)
    wide = config.model_copy(update={"model": config.model.model_copy(update={"dtype": "float32"})})
    expected = evaluate_untuned(wide)
    assert result["test"]["loss"] == pytest.approx(expected["test"]["loss"], rel=1e-6)
    assert math.isfinite(result["test"]["loss"])


def test_int8_layers_beside_16bit_ones(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = EagerInt8Kernels("fp32", "fp32")  # codes up to 127 on every CPU
    monkeypatch.setattr("peftlab_kernels.backends.eager_int8_kernels", lambda x: kernels)
    run = pipeline.train(configure("run", "causal-lm", "llama", method={"name": "qlora", "r": 4}))
    reopened = pipeline.open_run(run.folder)
    model: Any = reopened.loaded.model
    assert model.get_output_embeddings().weight.dtype is torch.bfloat16
    seen = SixteenBitOutputs().watch(model)
    again = reopened.evaluate("test")
    assert seen == []
    # Hooks keep the adapter to PEFT's own forward, which reads x before it is quantised.
    assert again["loss"] == pytest.approx(run.metrics["test"]["loss"], rel=1e-3)


def test_a_checkpoint_of_two_dtypes(configure: Configure, tmp_path: Path) -> None:
    """Norms in fp32 beside 16-bit weights: what most scalars have is what all rest in."""
    model = shutil.copytree(configure("-", "causal-lm", "llama").model.name, tmp_path / "mixed")
    state = load_file(model / "model.safetensors")
    mixed = {name: t.float() if "norm" in name else t for name, t in state.items()}
    save_file(mixed, model / "model.safetensors", metadata={"format": "pt"})
    run = pipeline.train(configure("run", "causal-lm", "llama", model={"name": str(model)}))
    assert run.record["model"]["at_rest"] == "bfloat16"
    reopened = pipeline.open_run(run.folder)
    seen = SixteenBitOutputs().watch(reopened.loaded.model)
    assert reopened.evaluate("test")["loss"] == pytest.approx(run.metrics["test"]["loss"], rel=1e-5)
    assert seen == []
