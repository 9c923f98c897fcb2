"""Method `peft` through whole runs: stopped, resumed, opened, exported and compared."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from peftlab import pipeline
from peftlab.cli import main
from peftlab.config import config_from_mapping
from peftlab.errors import CheckFailed, Interrupted

WEIGHTS = "adapter/adapter_model.safetensors"
TEXTS = ["a good film", "a bad film 3"]

Mapping = dict[str, Any]


def mapping(base: Path, data: Path, out: Path, task: str, peft_type: str, **keys: Any) -> Mapping:
    """A run's configuration; its rows lie in `data`."""
    words = ("good", "bad")
    data.mkdir(exist_ok=True)
    for split, count in (("train", 24), ("validation", 8)):
        rows: list[Mapping] = [
            {"text": f"a {words[i % 2]} film {i}", "label": words[i % 2]}
            if task == "text-classification"
            else {"prompt": f"name number {i}", "completion": f"a {i % 2} dog"}
            for i in range(count)
        ]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": {"name": str(base), "dtype": "float32"},
        "task": task,
        "data": {"source": str(data)},
        "method": {"name": "peft", "peft_type": peft_type, **keys},
        "train": {"max_steps": 6, "global_batch_size": 8, "save_every": 2},
        "eval": {"every": "never"},
        "output": {"dir": str(out), "plots": False},
        "bench": {"methods": [f"peft:{peft_type}"], "untuned": False},
    }


def stopped_in_step_four(settings: Mapping, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends by a signal, with a checkpoint."""
    from peftlab.pipeline import preparation

    prepare = preparation.prepare

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        prepared, calls = prepare(*args, **kwargs), 0

        def hook(*_: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == 4:
                os.kill(os.getpid(), signal.SIGTERM)

        prepared.applied.model.register_forward_pre_hook(hook)
        return prepared

    with monkeypatch.context() as patched:
        patched.setattr(preparation, "prepare", interrupted)
        with pytest.raises(Interrupted):
            pipeline.train(config_from_mapping(settings))


def resumes_in_the_same_bits(
    settings: Mapping, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """The run that was never stopped, once another that was has been compared with it."""
    run = pipeline.train(config_from_mapping(settings))
    again = settings | {"output": {"dir": str(tmp_path / "stopped"), "plots": False}}
    stopped_in_step_four(again, monkeypatch)
    resumed = pipeline.train(config_from_mapping(again), resume="auto")
    first, second = (load_file(r.folder / WEIGHTS) for r in (run, resumed))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    return run


def test_vera_through_the_whole_pipeline(
    tiny_checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_checkpoint("bert")
    settings = mapping(base, tmp_path / "data", tmp_path / "run", "text-classification", "VERA")
    planned = pipeline.plan(config_from_mapping(settings))
    run = resumes_in_the_same_bits(settings, tmp_path, monkeypatch)
    assert run.metrics["train"]["learning_rate"] == 0.1
    trained = sum(p.numel() for p in run.loaded.model.parameters() if p.requires_grad)
    assert planned.trained_parameters == trained

    opened = pipeline.open_run(run.folder)
    assert opened.evaluate("validation")["accuracy"] >= 0
    predicted = list(opened.predict(TEXTS))
    run.export(tmp_path / "out")

    from transformers import AutoModelForSequenceClassification

    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    for text, row in zip(TEXTS, predicted, strict=True):
        inputs = run.loaded.tokenizer([text], return_tensors="pt")
        inputs = {key: inputs[key] for key in ("input_ids", "attention_mask")}
        with torch.no_grad():
            scores = merged(**inputs).logits.softmax(-1)[0]
        assert merged.config.id2label[int(scores.argmax())] == row["label"]


@pytest.mark.slow
def test_a_row_of_a_comparison(tiny_checkpoint: Any, tmp_path: Path) -> None:
    settings = mapping(
        tiny_checkpoint("bert"), tmp_path / "data", tmp_path / "run", "text-classification", "IA3"
    )
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(settings))
    assert main(["bench", str(file), "-o", str(tmp_path / "bench")]) == 0
    assert "IA3" in (tmp_path / "bench" / "report.html").read_text()


def test_adalora_keeps_its_ranks_through_a_run(
    tiny_checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the ranks are taken away, and what opens or is exported has the rest."""
    base = tiny_checkpoint("llama", "causal")
    keys = {"init_r": 4, "target_r": 2, "target_modules": ["q_proj", "v_proj"], "deltaT": 1}
    settings = mapping(base, tmp_path / "data", tmp_path / "run", "causal-lm", "ADALORA", **keys)
    run = resumes_in_the_same_bits(settings, tmp_path, monkeypatch)
    kept = [t for name, t in load_file(run.folder / WEIGHTS).items() if name.endswith("lora_E")]
    assert len(kept) == 4
    assert 8 <= sum(len(t) for t in kept) < 16
    inputs = {"input_ids": torch.arange(5, 25)[None]}
    models = [run.loaded.model, pipeline.open_run(run.folder).loaded.model]
    run.export(tmp_path / "out")

    from transformers import AutoModelForCausalLM

    models.append(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
    with torch.no_grad():
        trained, opened, merged = (model.eval()(**inputs).logits for model in models)
    assert torch.allclose(opened, trained, rtol=0, atol=1e-5)
    assert torch.allclose(merged, trained, rtol=0, atol=1e-4)


def test_a_type_without_weights_of_the_base_is_not_exported(
    tiny_checkpoint: Any, tmp_path: Path
) -> None:
    base = tiny_checkpoint("llama", "causal")
    keys = {"num_virtual_tokens": 4}
    settings = mapping(
        base, tmp_path / "data", tmp_path / "run", "causal-lm", "PROMPT_TUNING", **keys
    )
    run = pipeline.train(config_from_mapping(settings))
    with pytest.raises(CheckFailed, match="virtual tokens are no weights of the base"):
        run.export(tmp_path / "out")
