"""Adapters that begin from the base or the data, through whole runs: resumed, opened, exported."""

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
from peftlab.tasks.language.causal_lm import CausalLM

FIRST = {"save_every": 2}
WEIGHTS = "adapter/adapter_model.safetensors"


def configure(tiny_checkpoint: Any, out: Path, train: Any = None, **method: Any) -> Any:
    rows = out.parent / "rows.jsonl"
    lines = [{"prompt": f"name number {i}", "completion": f"a {i % 2} dog"} for i in range(24)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    base = tiny_checkpoint("llama", "causal")
    steps = {"max_steps": 4, "global_batch_size": 8, "learning_rate": 1e-2} | FIRST
    return config_from_mapping(
        {
            "model": {"name": str(base), "dtype": "float32"}, "task": "causal-lm",
            "data": {"source": str(rows), "splits": {"validation": 0.25}},
            "method": {"name": "lora", "r": 4, "target_modules": ["q_proj", "v_proj"]} | method,
            "train": steps | (train or {}), "eval": {"every": "never"},
            "output": {"dir": str(out), "plots": False},
        }
    )  # fmt: skip


def killed_in_step_three(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, count_items = 0, CausalLM.count_items

    def killed(self: CausalLM, batch: Any) -> int:
        nonlocal seen
        seen += 1
        if seen == 3:
            raise MemoryError("killed in step 3 of 4")
        return count_items(self, batch)

    with monkeypatch.context() as broken:
        broken.setattr(CausalLM, "count_items", killed)
        with pytest.raises(MemoryError):
            pipeline.train(config)


@pytest.mark.parametrize("init", ["pissa_niter_4", "mica", "eva"])
def test_a_resumed_run_ends_as_one_that_never_stopped(
    init: str, tiny_checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pipeline.train(
        configure(tiny_checkpoint, tmp_path / "whole", init_lora_weights=init, r=2)
    )
    config = configure(tiny_checkpoint, tmp_path / "cut", init_lora_weights=init, r=2)
    killed_in_step_three(config, monkeypatch)
    kept = tmp_path / "cut.unfinished" / "checkpoint-2" / "start.safetensors"
    assert kept.is_file()
    resumed = pipeline.train(config, resume="auto")
    first, second = (load_file(run.folder / WEIGHTS) for run in (whole, resumed))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not list(resumed.folder.rglob("start.safetensors"))


def test_a_run_that_took_its_start_out_opens_exports_and_is_on_its_base(
    tiny_checkpoint: Any, tmp_path: Path
) -> None:
    run = pipeline.train(configure(tiny_checkpoint, tmp_path / "run", init_lora_weights="olora"))
    plain = pipeline.train(configure(tiny_checkpoint, tmp_path / "plain"))
    marks = [json.loads((r.folder / "adapter" / "peftlab.json").read_text()) for r in (run, plain)]
    assert marks[0] == marks[1], "the fingerprint is of the untouched base"
    opened = pipeline.open_run(run.folder)
    trained, found = run.loaded.model, opened.loaded.model
    inputs = {"input_ids": torch.arange(5, 25)[None]}
    with torch.no_grad():
        want = trained.eval()(**inputs).logits
        assert torch.allclose(found(**inputs).logits, want, atol=1e-5)
    run.export(tmp_path / "out")
    import transformers

    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert torch.allclose(merged(**inputs).logits, want, atol=1e-4)


def test_bs_learning_rate_is_planned_and_kept_on_resume(
    tiny_checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(tiny_checkpoint, tmp_path / "run", loraplus_lr_ratio=4.0)
    assert pipeline.plan(config).to_json()["other_learning_rates"] == [4e-2]
    plain = pipeline.train(configure(tiny_checkpoint, tmp_path / "plain"))
    killed_in_step_three(config, monkeypatch)
    changed = configure(tiny_checkpoint, tmp_path / "run", loraplus_lr_ratio=2.0)
    with pytest.raises(ConfigError, match=r"loraplus_lr_ratio"):
        pipeline.train(changed, resume="auto")
    run = pipeline.train(config, resume="auto")
    fast, slow = (load_file(found.folder / WEIGHTS) for found in (run, plain))
    for key, tensor in fast.items():
        if ".lora_B." in key:
            assert tensor.abs().max() > 2 * slow[key].abs().max()


def test_drawing_to_no_change_contradicts_a_start_of_the_base(
    tiny_checkpoint: Any, tmp_path: Path
) -> None:
    config = configure(tiny_checkpoint, tmp_path / "run", init_lora_weights="pissa")
    drawn = config.model_copy(
        update={"regularization": config.regularization.model_copy(update={"l2_sp": 0.1})}
    )
    for verb in (pipeline.plan, pipeline.train):
        with pytest.raises(ConfigError, match="a start by pissa is part of that product"):
            verb(drawn)
