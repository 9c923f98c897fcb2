"""`train.kernels`: the same training with and without, what a run keeps of it, and its replay."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from peftlab import pipeline
from peftlab.config import config_from_mapping
from peftlab.errors import CheckFailed, ConfigError
from peftlab.fusion import backend
from peftlab.pipeline.fusing import by_choices_of, recorded_choices
from peftlab.pipeline.plan import plan
from peftlab_kernels import backends
from peftlab_kernels.eager import cpu_arithmetic
from peftlab_kernels.eager.backend import EagerKernels

Configure = Callable[..., Any]


@pytest.fixture
def configure(tiny_checkpoint: Any, tmp_path: Path) -> Configure:
    """`configure(kernels, family, dtype, **sections)`: a LoRA run without dropout in 12 steps."""
    data = tmp_path / "data"
    data.mkdir()
    for split, count in (("train", 48), ("validation", 8), ("test", 8)):
        lines = [
            json.dumps({"text": f"a {('good', 'bad')[i % 2]} film , number {i}", "label": i % 2})
            for i in range(count)
        ]
        (data / f"{split}.jsonl").write_text("\n".join(lines) + "\n")

    def make(kernels: str, family: str, dtype: str = "float32", **sections: Any) -> Any:
        base: dict[str, Any] = {
            "model": {"name": str(tiny_checkpoint(family)), "dtype": dtype},
            "task": "text-classification",
            "data": {"source": str(data)},
            "method": {"name": "lora", "r": 4, "dropout": 0.0},
            "train": {
                "kernels": kernels, "num_train_epochs": 2, "global_batch_size": 8,
                "learning_rate": 5e-3, "logging_steps": 1, "save_every": "never",
            },
            "eval": {"every": "never"},
            "output": {"dir": str(tmp_path / f"{kernels}-{family}"), "plots": False},
        }  # fmt: skip
        return config_from_mapping(base | sections)

    return make


def losses(run: Any) -> list[float]:
    with (run.folder / "log.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "llama"])
def test_training_is_the_same_with_and_without(family: str, configure: Configure) -> None:
    fused, plain = (pipeline.train(configure(kernels, family)) for kernels in ("auto", "off"))
    assert len(losses(fused)) == 12
    assert losses(fused) == pytest.approx(losses(plain), rel=1e-5)
    assert fused.metrics["test"]["loss"] == pytest.approx(plain.metrics["test"]["loss"], rel=1e-5)
    report = fused.record["fusion"]
    assert report["fused"]
    assert not report["not_fused"]
    assert plain.record["fusion"] is None


def test_plan_shows_what_will_be_fused(configure: Configure) -> None:
    result = plan(configure("auto", "bert")).fusion
    assert result is not None
    assert result.fused
    assert plan(configure("off", "bert")).fusion is None
    dora = {"name": "lora", "r": 4, "use_dora": True}
    result = plan(configure("auto", "bert", method=dora)).fusion
    assert result is not None
    assert not result.fused
    assert all("DoraLinearVariant" in layer.reason for layer in result.not_fused)


def test_a_run_is_computed_by_its_own_choices(
    configure: Configure,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """On a machine where another arithmetic is faster it computes as trained, and logs it."""
    monkeypatch.setenv("PEFTLAB_KERNEL_CHOICES", str(tmp_path / "choices.json"))
    monkeypatch.setattr("peftlab.model.precision.cpu_has_bf16_units", lambda: True)
    used: list[EagerKernels] = []
    choose = backends.eager_kernels

    def spy(x: torch.Tensor) -> EagerKernels:
        used.append(choose(x))
        return used[-1]

    monkeypatch.setattr(backends, "eager_kernels", spy)

    def fastest(name: str) -> None:
        other = {"native": "fp32", "fp32": "native"}[name]
        monkeypatch.setattr(cpu_arithmetic, "_candidates", lambda *_: {name: int, other: slow})
        (tmp_path / "choices.json").unlink(missing_ok=True)
        backend.autotune.forget()

    fastest("fp32")
    run = pipeline.train(configure("auto", "bert", "auto"))
    assert set(used) == {EagerKernels("fp32", "fp32")}
    kept = json.loads((run.folder / "kernel_choices.json").read_text())
    assert kept["bfloat16 x @ W.T"] == kept["bfloat16 dy @ W"] == "fp32"

    fastest("native")
    used.clear()
    again = pipeline.open_run(run.folder)
    assert again.evaluate("test") == run.metrics["test"]
    assert again.predict(["a good film"])
    assert set(used) == {EagerKernels("fp32", "fp32")}
    assert "this machine would choose native" in caplog.text
    backend.autotune.forget()


def ask() -> EagerKernels:
    return backends.eager_kernels(torch.zeros(1, 2, dtype=torch.bfloat16))


def read(folder: Path) -> Any:
    return json.loads((folder / "kernel_choices.json").read_text())


def test_a_run_keeps_what_it_chose_itself_and_at_once(tmp_path: Path) -> None:
    """Not what the process chose before; and a kill leaves what has been chosen by then."""
    ask()
    with recorded_choices(tmp_path, None):
        assert read(tmp_path) == {}
        result = ask()
        assert read(tmp_path) == {
            "bfloat16 x @ W.T": result.forward_arithmetic,
            "bfloat16 dy @ W": result.backward_arithmetic,
        }


def test_a_resumed_run_keeps_its_choices_however_early_it_fails(tmp_path: Path) -> None:
    default = ask().forward_arithmetic
    other = "native" if default == "fp32" else "fp32"
    (tmp_path / "kernel_choices.json").write_text(json.dumps({"bfloat16 x @ W.T": other}))
    with pytest.raises(KeyError), recorded_choices(tmp_path, None):
        raise KeyError
    assert read(tmp_path) == {"bfloat16 x @ W.T": other}
    with recorded_choices(tmp_path, None):
        assert ask().forward_arithmetic == other


@pytest.mark.parametrize("content", ["{", "[]", '{"bfloat16 x @ W.T": 3}'])
def test_damaged_choices_are_reported_with_the_way_out(tmp_path: Path, content: str) -> None:
    file = tmp_path / "kernel_choices.json"
    file.write_text(content)
    ran = r"kernel_choices.json .*; remove it to compute by"
    with pytest.raises(CheckFailed, match=ran), by_choices_of(tmp_path):
        pass
    file.unlink()
    with by_choices_of(tmp_path):
        assert ask() == ask()


def test_an_unknown_backend_is_refused_before_training(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEFTLAB_BACKEND", "cuda")
    with pytest.raises(ConfigError, match="PEFTLAB_BACKEND: unknown backend 'cuda'"):
        plan(configure("auto", "bert"))
    with pytest.raises(ConfigError, match="PEFTLAB_BACKEND"):
        backend.describe_kernels("cpu")
    monkeypatch.setenv("PEFTLAB_BACKEND", "triton")
    with pytest.raises(ConfigError, match="PEFTLAB_BACKEND is triton, but the tensors are on cpu"):
        plan(configure("auto", "bert"))
    described = backend.describe_kernels("cpu")
    assert described["backend"] == "none: triton is requested and cannot compute"
    assert described["requested"] == "triton"
    assert described["why_not"]["torch"] is None
    assert "needs a CUDA device" in described["why_not"]["triton"]


def slow() -> None:
    """Stands for a product that takes long."""
    import time

    time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize("data", ["sst2", "e2e_nlg"])
def test_loss_curves_of_real_runs_are_the_same(
    data: str, minilm: Path, shared_data: Path, tmp_path: Path
) -> None:
    """Sixteen steps without dropout: the curves differ by no more than fp32 rounding grown."""
    classifies = data == "sst2"
    model = minilm if classifies else shared_data / "model_tinystories656k"
    columns = {} if classifies else {"prompt": "input", "completion": "output"}
    result = []
    for kernels in ("auto", "off"):
        config = config_from_mapping(
            {
                "model": {"name": str(model), "dtype": "float32"},
                "task": "text-classification" if classifies else "causal-lm",
                "data": {
                    "source": str(shared_data / data), "columns": columns,
                    "max_train_samples": 64, "max_length": 32,
                    "splits": {"validation": None, "test": None},
                },
                "method": {"name": "lora", "r": 8, "alpha": 16, "dropout": 0.0},
                "train": {
                    "kernels": kernels, "max_steps": 16, "global_batch_size": 4,
                    "logging_steps": 1, "save_every": "never",
                },
                "eval": {"every": "never"},
                "output": {"dir": str(tmp_path / kernels), "plots": False},
            }
        )  # fmt: skip
        result.append(losses(pipeline.train(config)))
    assert len(result[0]) == 16
    assert result[0] == pytest.approx(result[1], rel=1e-4)
