"""Merging what LoRA's rarer keys train, or a sentence where it has no place in the base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftlab.errors import CheckFailed
from peftlab.export.merge import merge

from .adapters import LINEAR, Made

pytestmark = [
    pytest.mark.poison_empty(False),  # what is read from a file is filled at once
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.mark.parametrize("bias", ["all", "lora_only"])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_biases_that_trained(family: str, bias: str, tmp_path: Path) -> None:
    made = Made(tmp_path, family, target_modules=[LINEAR[family]], bias=bias)
    with torch.no_grad():
        for name, parameter in made.model.named_parameters():
            if parameter.requires_grad and name.endswith("bias"):
                parameter.normal_(std=0.1)
    made.model.save_pretrained(made.adapter)
    tensors = load_file(made.adapter / "adapter_model.safetensors")
    kept = {k: t for k, t in tensors.items() if "original_module" not in k}
    kept = {k: t for k, t in kept.items() if ".modules_to_save." not in k}
    save_file(kept, made.adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    report = merge(made.adapter, made.out, base=str(made.base))
    assert report.verified["logits"]["error"] <= report.verified["logits"]["tolerance"]
    found, expected = made.load(made.out).state_dict(), made.merged_by_peft()
    assert [name for name, t in expected.items() if not torch.equal(found[name], t)] == []


def test_a_bias_that_nothing_can_take_is_refused(tmp_path: Path) -> None:
    made = Made(tmp_path, "llama", lora_bias=True)
    with pytest.raises(CheckFailed, match=r"lora_bias on .*, which has no bias to merge it into"):
        merge(made.adapter, made.out, base=str(made.base))
    assert not made.out.exists()
    biased = Made(tmp_path / "bert", "bert", lora_bias=True, target_modules=["query"])
    report = merge(biased.adapter, biased.out, base=str(biased.base))
    assert report.verified["logits"]["error"] <= report.verified["logits"]["tolerance"]


def test_a_start_that_was_lost_is_refused(tmp_path: Path) -> None:
    made = Made(tmp_path, "llama", init_lora_weights="pissa_niter_4", target_modules=["q_proj"])
    with pytest.raises(CheckFailed, match=r"began as pissa_niter_4 and was saved without"):
        merge(made.adapter, made.out, base=str(made.base), verify=False)
    assert not made.out.exists()


def test_single_parameters_are_not_merged(tmp_path: Path) -> None:
    made = Made(tmp_path, "llama", target_modules=["v_proj"], target_parameters=["q_proj.weight"])
    with pytest.raises(CheckFailed, match="it adapts parameters, not layers"):
        merge(made.adapter, made.out, base=str(made.base))
