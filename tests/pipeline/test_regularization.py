"""Penalties through the whole pipeline: every method, what is saved, merged, and reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from peftlab import pipeline
from peftlab.config import config_from_mapping
from peftlab.errors import ConfigError

METHODS: dict[str, dict[str, Any]] = {
    "head": {"name": "head"},
    "last_n": {"name": "last_n", "n": 1},
    "lora": {"name": "lora", "r": 4},
    "qlora": {"name": "qlora", "r": 4},
    "full": {"name": "full"},
}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    lines = [
        json.dumps({"text": f"a {word} film , number {i}", "label": word})
        for i, word in ((i, ("good", "bad")[i % 2]) for i in range(48))
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "rows.jsonl"


def configure(model: Path, rows: Path, out: Path, **sections: Any) -> Any:
    base: dict[str, Any] = {
        "model": {"name": str(model), "dtype": "float32"},
        "task": "text-classification",
        "data": {"source": str(rows)},
        "regularization": {"l1": 0.4, "l2": 0.01, "l2_sp": 0.1},
        "train": {"num_train_epochs": 3, "global_batch_size": 8, "learning_rate": 0.02},
        "output": {"dir": str(out)},
    }
    return config_from_mapping(base | sections)


def saved(run: Any) -> dict[str, torch.Tensor]:
    (file,) = [f for f in run.folder.glob("*/*.safetensors") if f.parent.name != "tokenizer"]
    return load_file(file)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_its_zeros(
    name: str, tiny_checkpoint: Any, rows: Path, tmp_path: Path
) -> None:
    if name == "qlora":
        pytest.importorskip("bitsandbytes")
    config = configure(tiny_checkpoint("bert"), rows, tmp_path / "run", method=METHODS[name])
    run = pipeline.train(config)
    report = run.metrics["train"]["regularization"]
    assert 0.02 < report["sparsity"] < 1
    assert report["penalty"].keys() == {"l1", "l2", "l2_sp", "total"}
    tensors = [tensor for tensor in saved(run).values() if tensor.dim() > 1]
    zeros = sum(int((tensor == 0).sum()) for tensor in tensors)
    assert (zeros, sum(t.numel() for t in tensors)) == (report["zeros"], report["penalised"])
    header = (run.folder / "log.csv").read_text().splitlines()[0].split(",")
    assert header[:5] == ["step", "epoch", "loss", "penalty", "sparsity"]
    first = run.folder.joinpath("log.csv").read_text().splitlines()[1].split(",")
    # The loss of guessing two classes, even where the penalties are a hundred times as large.
    assert 0.3 < float(first[2]) < 1.5
    assert float(first[3]) > 0


def test_merging_keeps_the_zeros_of_a_head(
    tiny_checkpoint: Any, rows: Path, tmp_path: Path
) -> None:
    config = configure(
        tiny_checkpoint("bert"), rows, tmp_path / "run", method={"name": "last_n", "n": 1},
        regularization={"l1": 0.9, "scope": "head"},
    )  # fmt: skip
    run = pipeline.train(config)
    zeros = {name: tensor == 0 for name, tensor in saved(run).items() if "classifier" in name}
    report = run.metrics["train"]["regularization"]
    assert sum(int(result.sum()) for n, result in zeros.items() if "weight" in n) == report["zeros"]
    assert report["zeros"] > 0
    run.export(tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert zeros.keys() <= merged.keys()
    assert all(torch.equal(merged[name] == 0, result) for name, result in zeros.items())


def test_a_reopened_adapter_has_its_zeros(tiny_checkpoint: Any, rows: Path, tmp_path: Path) -> None:
    config = configure(
        tiny_checkpoint("llama"), rows, tmp_path / "run", method=METHODS["lora"],
        regularization={"l1": 0.4, "scope": "adapter"},
    )  # fmt: skip
    run = pipeline.train(config)
    tensors = {n: t for n, t in saved(run).items() if "lora_" in n}
    zeros = sum(int((tensor == 0).sum()) for tensor in tensors.values())
    assert zeros == run.metrics["train"]["regularization"]["zeros"] > 0
    model = pipeline.open_run(run.folder).loaded.model
    held = [p for n, p in model.named_parameters() if "lora_" in n]
    assert sum(int((p == 0).sum()) for p in held) == zeros


def test_fused_and_not_fused_penalise_alike(
    tiny_checkpoint: Any, rows: Path, tmp_path: Path
) -> None:
    result = []
    for kernels in ("auto", "off"):
        config = configure(
            tiny_checkpoint("bert"), rows, tmp_path / kernels,
            method={"name": "lora", "r": 4, "dropout": 0.0},
            train={
                "max_steps": 6, "global_batch_size": 8, "learning_rate": 0.01, "kernels": kernels,
                "adam_epsilon": 1e-3,
            },
        )  # fmt: skip
        run = pipeline.train(config)
        assert (run.record["fusion"] is None) == (kernels == "off")
        result.append((saved(run), run.metrics["train"]["regularization"]["penalty"]))
    (fused, penalties), (plain, others) = result
    assert penalties == pytest.approx(others, rel=1e-3)
    for name, tensor in fused.items():
        torch.testing.assert_close(tensor, plain[name], rtol=1e-3, atol=1e-4)


def test_the_plan_says_what_is_penalised(tiny_checkpoint: Any, rows: Path, tmp_path: Path) -> None:
    config = configure(tiny_checkpoint("bert"), rows, tmp_path / "run", method=METHODS["lora"])
    (penalty_note,) = [note for note in pipeline.plan(config).notes if note.startswith("penalised")]
    assert "l2_sp 0.1 on" in penalty_note
    assert "12 adapted layers towards no change" in penalty_note
    unpenalised = configure(
        tiny_checkpoint("bert"), rows, tmp_path / "run", method=METHODS["lora"], regularization={}
    )
    assert not [note for note in pipeline.plan(unpenalised).notes if note.startswith("penalised")]


@pytest.mark.parametrize("verb", [pipeline.plan, pipeline.train])
def test_what_cannot_be_penalised_leaves_nothing(
    verb: Any, tiny_checkpoint: Any, rows: Path, tmp_path: Path
) -> None:
    model, before = tiny_checkpoint("bert"), set(tmp_path.rglob("*"))
    for sections, words in (
        ({"method": {"name": "lora", "use_dora": True}}, "DoRA"),
        ({"method": METHODS["lora"], "train": {"optim": "lomo"}}, "inside the backward pass"),
    ):
        with pytest.raises(ConfigError, match=words):
            verb(configure(model, rows, tmp_path / "run", **sections))
        assert set(tmp_path.rglob("*")) == before
