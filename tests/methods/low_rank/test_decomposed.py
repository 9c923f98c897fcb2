"""PiSSA, OLoRA and MiCA: what is saved loads over the untouched base, in another process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftlab.errors import CheckFailed
from peftlab.methods.apply import apply_method, method_of, save_trained
from peftlab.methods.low_rank.decomposed import lora_layers
from peftlab.methods.method import Applied, Beginning
from peftlab.methods.trained_part import Start
from tests.methods.common import CAUSAL, batch, load, method, step

Tiny = Callable[..., Path]

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "pissa": ("llama", {"init_lora_weights": "pissa"}),
    "pissa_niter_4": ("llama", {"init_lora_weights": "pissa_niter_4"}),
    "olora": ("llama", {"init_lora_weights": "olora"}),
    "mica": ("llama", {"init_lora_weights": "mica"}),
    "conv1d": ("gpt2", {"init_lora_weights": "olora"}),
    "rslora, dora, patterns": (
        "llama",
        {
            "init_lora_weights": "pissa_niter_4", "use_rslora": True, "use_dora": True,
            "rank_pattern": {"q_proj": 6}, "alpha_pattern": {r"layers\.1\.self_attn\.v_proj": 12},
        },
    ),
}  # fmt: skip

FRESH = """
import json, sys, torch, transformers, peft
for job in json.loads(sys.argv[1]):
    torch.manual_seed(999)
    base = transformers.AutoModelForCausalLM.from_pretrained(job["base"], dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, job["adapter"]).eval()
    inputs = torch.load(job["inputs"])
    with torch.no_grad():
        torch.save(model(**inputs).logits, job["out"])
"""


def begin(folder: Path, settings: dict[str, Any], checkpoint: Path | None = None) -> Any:
    """A begun adapter, with inputs and the base's logits."""
    chosen = method("lora", **({"r": 4, "alpha": 8, "dropout": 0.0} | settings))
    loaded = load(folder, CAUSAL, chosen)
    inputs = batch(loaded)
    base = logits(loaded.model, inputs)
    applied = apply_method(loaded.model, chosen, task=CAUSAL)
    beginning = Beginning(0, torch.float32, lambda: [inputs], checkpoint)
    return method_of(chosen).begin(applied, beginning), inputs, base


def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(**inputs).logits
    return found


def start_of(applied: Applied) -> Start:
    assert applied.start is not None
    return applied.start


def test_plain_peft_in_a_fresh_process_computes_the_same(
    tiny_checkpoint: Tiny, tmp_path: Path
) -> None:
    jobs, wanted = [], []
    for number, (family, settings) in enumerate(KINDS.values()):
        folder = tiny_checkpoint(family, "causal")
        applied, inputs, base = begin(folder, settings)
        kept = {n: m.get_base_layer().weight.clone() for n, m in lora_layers(applied.model).items()}
        assert torch.allclose(logits(applied.model, inputs), base, atol=1e-5)
        for _ in range(4):
            step(applied.model, inputs, CAUSAL, 0.005)
        want = logits(applied.model, inputs)
        assert (want - base).abs().max() > 0.05
        for name, layer in lora_layers(applied.model).items():
            assert torch.equal(layer.get_base_layer().weight, kept[name])
        own = tmp_path / str(number)
        adapter = save_trained(applied, own)
        torch.save(inputs, own / "inputs.pt")
        names = {"inputs": own / "inputs.pt", "out": own / "out.pt"}
        paths = {"base": folder, "adapter": adapter} | names
        jobs.append({key: str(path) for key, path in paths.items()})
        wanted.append(want)
    subprocess.run([sys.executable, "-c", FRESH, json.dumps(jobs)], check=True)
    for what, job, want in zip(KINDS, jobs, wanted, strict=True):
        assert (torch.load(job["out"]) - want).abs().max() < 1e-4 * want.std(), what


def test_what_is_taken_out_and_what_is_written(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    folder = tiny_checkpoint("llama", "causal")
    stored = load_file(folder / "model.safetensors")
    for init in ("pissa", "olora"):
        applied, _, _ = begin(folder, {"init_lora_weights": init})
        name, layer = next(iter(lora_layers(applied.model).items()))
        weight = layer.get_base_layer().weight
        whole = stored[f"{name.removeprefix('base_model.model.')}.weight"]
        assert not torch.allclose(weight, whole, atol=1e-3)
        product = 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        assert torch.allclose(weight + product, whole, atol=1e-5)
        if init == "pissa":
            values = torch.linalg.svdvals(whole)
            assert torch.allclose(torch.linalg.svdvals(product)[:4], values[:4], atol=1e-4)
        adapter = save_trained(applied, tmp_path / init)
        said = json.loads((adapter / "adapter_config.json").read_text())
        assert (said["r"], said["lora_alpha"], said["init_lora_weights"]) == (8, 16, True)


def test_mica_keeps_b(tiny_checkpoint: Tiny) -> None:
    applied, inputs, base = begin(tiny_checkpoint("llama", "causal"), {"init_lora_weights": "mica"})
    layers = lora_layers(applied.model)
    factors = {n: layer.lora_B["default"].weight.clone() for n, layer in layers.items()}
    assert torch.equal(logits(applied.model, inputs), base)
    step(applied.model, inputs, CAUSAL)
    assert all(".lora_A." in name for name in applied.trainable)
    for name, layer in layers.items():
        b = layer.lora_B["default"].weight
        assert torch.equal(b, factors[name])
        assert torch.allclose(b.T @ b, torch.eye(4), atol=1e-5)


@pytest.mark.parametrize("init", ["pissa_niter_4", "olora", "mica"])
def test_a_checkpoint_carries_the_start(init: str, tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    folder = tiny_checkpoint("llama", "causal")
    applied, _, _ = begin(folder, {"init_lora_weights": init})
    with pytest.raises(CheckFailed, match=f"carries no start by {init}"):
        begin(folder, {"init_lora_weights": init}, tmp_path)
    # Another start than would be computed: the file's is taken.
    start = start_of(applied)
    assert start.taken_out == (init != "mica")
    replace(start, tensors={n: t * 1.25 for n, t in start.tensors.items()}).save(tmp_path)
    resumed, _, _ = begin(folder, {"init_lora_weights": init}, tmp_path)
    assert start_of(resumed).taken_out == start.taken_out
    for name, tensor in start_of(resumed).tensors.items():
        assert torch.equal(tensor, start.tensors[name] * 1.25)
    start.save(tmp_path)
    resumed, _, _ = begin(folder, {"init_lora_weights": init}, tmp_path)
    for name, layer in lora_layers(resumed.model).items():
        first = lora_layers(applied.model)[name]
        assert torch.equal(layer.get_base_layer().weight, first.get_base_layer().weight)
        if init == "mica":
            assert torch.equal(layer.lora_B["default"].weight, first.lora_B["default"].weight)


@pytest.mark.parametrize("init", ["pissa", "olora", "pissa_niter_4"])
def test_a_raw_adapter_of_peft_is_gone_on_from(
    init: str, tiny_checkpoint: Tiny, tmp_path: Path
) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tiny_checkpoint("llama", "causal")
    names = ["q_proj", "v_proj"]
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=names, init_lora_weights=init
    )
    raw: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    with torch.no_grad():
        for parameter in raw.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.full_like(parameter, 0.05))
    raw.save_pretrained(tmp_path / "raw")
    settings = {"target_modules": names, "init_from": str(tmp_path / "raw")}
    if init == "pissa_niter_4":
        with pytest.raises(CheckFailed, match=r"began as pissa_niter_4.*cannot be computed again"):
            begin(folder, settings)
        return
    applied, inputs, _ = begin(folder, settings)
    want = logits(raw, inputs)
    assert torch.allclose(logits(applied.model, inputs), want, atol=1e-5)
    adapter = save_trained(applied, tmp_path / "run")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), adapter)
    assert torch.allclose(logits(plain, inputs), want, atol=1e-5)
    with pytest.raises(CheckFailed, match="no raw PiSSA"):
        begin(folder, settings | {"init_from": str(adapter), "init_lora_weights": init, "r": 8})


def test_mica_goes_on_from_mica_alone(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    folder = tiny_checkpoint("llama", "causal")
    for began in (True, "mica"):
        applied, inputs, _ = begin(folder, {"init_lora_weights": began})
        step(applied.model, inputs, CAUSAL)
        source = save_trained(applied, tmp_path / str(began))
        again = {"init_lora_weights": "mica", "init_from": str(source)}
        if began == "mica":
            assert torch.equal(
                logits(begin(folder, again)[0].model, inputs), logits(applied.model, inputs)
            )
            continue
        with pytest.raises(CheckFailed, match=r"is mica.*began as true, whose B trained"):
            begin(folder, again)


def test_other_starts_of_peft_are_passed_on(tiny_checkpoint: Tiny) -> None:
    folder = tiny_checkpoint("llama", "causal")
    _, layer = next(iter(lora_layers(begin(folder, {})[0].model).items()))
    a, b = (part["default"].weight for part in (layer.lora_A, layer.lora_B))
    assert a.any()
    assert not b.any()
    for init in ("gaussian", False, "orthogonal"):
        _, layer = next(
            iter(lora_layers(begin(folder, {"init_lora_weights": init})[0].model).items())
        )
        a, b = (part["default"].weight for part in (layer.lora_A, layer.lora_B))
        if init == "gaussian":
            assert not b.any()
            assert a.abs().max() > 32**-0.5  # beyond what Kaiming's uniform draws
        elif init == "orthogonal":
            assert b.any()
            assert (b @ a).abs().max() < 1e-5
        else:
            assert (b @ a).abs().max() > 1e-3


def test_a_damaged_start_is_refused(tmp_path: Path) -> None:
    save_file({}, tmp_path / "start.safetensors")
    (tmp_path / "start.safetensors").write_bytes(b"no")
    with pytest.raises(CheckFailed, match="cannot be read"):
        Start.of(tmp_path)
