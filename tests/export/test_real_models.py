"""Merges of real pretrained weights, to the bit as PEFT makes them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from peftlab.export.merge import merge

pytestmark = [
    pytest.mark.poison_empty(False),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

MODELS = {
    "model_stories260k": "CAUSAL_LM",
    "model_tinystories656k": "CAUSAL_LM",
    "minilm": "FEATURE_EXTRACTION",
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TEXT = "Once upon a time there was a little girl who had a red ball."


@pytest.fixture(params=MODELS)
def real(request: pytest.FixtureRequest) -> tuple[Path, str]:
    """A real model's folder, and its task in PEFT's terms."""
    if request.param == "minilm":
        return request.getfixturevalue("minilm"), MODELS[request.param]
    folder = request.getfixturevalue("shared_data") / request.param
    if not folder.is_dir():
        pytest.skip(f"no {request.param} in {folder.parent}")
    return folder, MODELS[request.param]


def loaded(folder: Path, task: str, dtype: torch.dtype) -> Any:
    """A model by Transformers, as it evaluates."""
    kind: Any = transformers.AutoModelForCausalLM if task == "CAUSAL_LM" else transformers.AutoModel
    model, info = kind.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not info["missing_keys"]
    return model.eval()


def adapter_on(base: Path, task: str, dtype: torch.dtype, folder: Path) -> None:
    """Save an adapter of every linear layer, of the size that training gives."""
    torch.manual_seed(5)
    config = LoraConfig(r=6, lora_alpha=9, target_modules="all-linear", task_type=task)
    model: Any = get_peft_model(loaded(base, task, dtype), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(folder)


@pytest.mark.parametrize("dtype", DTYPES)
def test_real_merges_are_pefts_to_the_bit(
    dtype: str, real: tuple[Path, str], tmp_path: Path
) -> None:
    (base, task), width = real, DTYPES[dtype]
    stored = {t.dtype for t in load_file(base / "model.safetensors").values()}
    if width not in stored:
        # The dtypes of its files are what a base is merged in.
        copy = tmp_path / "base"
        loaded(base, task, width).save_pretrained(copy)
        transformers.AutoTokenizer.from_pretrained(base).save_pretrained(copy)
        base = copy
    adapter, out = tmp_path / "adapter", tmp_path / "out"
    adapter_on(base, task, width, adapter)
    report = merge(adapter, out, base=str(base))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted: Any = PeftModel.from_pretrained(loaded(base, task, width), str(adapter)).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    inputs = dict(tokenizer(TEXT, return_tensors="pt"))
    with torch.no_grad():
        plain = loaded(base, task, width)(**inputs)[0].float()
    peft = adapted.merge_and_unload()
    merged = loaded(out, task, width)
    expected, result = peft.state_dict(), merged.state_dict()
    assert result.keys() == expected.keys()
    assert [name for name, t in expected.items() if not torch.equal(result[name], t)] == []
    with torch.no_grad():
        answers = merged(**inputs)[0].float()
        assert torch.equal(answers, peft(**inputs)[0].float())
    assert float((answers - plain).norm() / plain.norm()) > 1e-2
    assert report.counts["merged"] >= 7
    assert report.verified["logits"]["error"] <= report.verified["logits"]["tolerance"]


def test_real_untouched_tensors_are_the_bases_bytes(real: tuple[Path, str], tmp_path: Path) -> None:
    base, task = real
    stored = load_file(base / "model.safetensors")
    adapter, out = tmp_path / "adapter", tmp_path / "out"
    adapter_on(base, task, torch.float32, adapter)
    report = merge(adapter, out, base=str(base), verify=False)
    written = load_file(out / "model.safetensors")
    kept = [n for n, t in stored.items() if n in written and torch.equal(written[n], t)]
    assert report.counts["copied"] == len(kept) == len(report.hashes)
    assert {n: t.dtype for n, t in written.items()} == {n: stored[n].dtype for n in written}
    assert stored.keys() - written.keys() == set(report.dropped)
