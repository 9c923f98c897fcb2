"""Weights that are elsewhere between calls: accelerate's hooks bring them, and PEFT runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

from peftlab.fusion import fuse, unfuse

from .common import adapted, adapted_tiny, batch, layer_of, outcome

LAYERS = 14
CPU = torch.device("cpu")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(**batch("llama")).logits
    return result


@pytest.mark.parametrize("first", ["fuse", "offload"])
@pytest.mark.parametrize("how", ["cpu", "disk"])
def test_everything_offloaded(how: str, first: str, calls: Any, tmp_path: Path) -> None:
    model = adapted_tiny("llama")
    expected = logits(model)
    if first == "fuse":
        fuse(model)
    if how == "cpu":
        cpu_offload(model, execution_device=CPU)
    else:
        disk_offload(model, str(tmp_path), execution_device=CPU)
    report = fuse(model)
    assert report.fused == ()
    assert {layer.reason for layer in report.not_fused} == {
        "the forward of its base_layer is replaced on the instance, as accelerate's hooks do"
    }
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert torch.equal(logits(model), expected)
    assert calls.take() == 0

    remove_hook_from_module(model, recurse=True)
    assert len(fuse(model).fused) == LAYERS
    assert torch.allclose(logits(model), expected, rtol=1e-12)
    assert calls.take() == LAYERS


def test_blocks_on_several_devices(calls: Any, tmp_path: Path) -> None:
    """As `device_map="auto"` leaves a model: accelerate hooks every module of it."""
    model = adapted_tiny("llama")
    expected = logits(model)
    base = "base_model.model.model"
    places = {f"{base}.layers.1": "disk", f"{base}.layers.0": "cpu", f"{base}.norm": "cpu"}
    places |= {f"{base}.embed_tokens": "cpu", f"{base}.rotary_emb": "cpu"}
    places |= {"base_model.model.lm_head": "cpu"}
    fuse(model)
    dispatch_model(model, places, main_device="cpu", offload_dir=str(tmp_path))
    assert len(fuse(model).not_fused) == LAYERS
    assert torch.equal(logits(model), expected)
    assert calls.take() == 0


@pytest.mark.parametrize("part", ["base_layer", "lora_A", "lora_B"])
def test_a_hook_of_accelerate_on_one_part(part: str, calls: Any) -> None:
    class Doubles(ModelHook):
        def post_forward(self, module: Any, output: Any) -> Any:
            return 2 * output

    model = adapted()
    layer = layer_of(model)
    target = layer.base_layer if part == "base_layer" else getattr(layer, part)["default"]
    plain = outcome(model)["y"]
    add_hook_to_module(target, Doubles())
    expected = outcome(model)["y"]
    assert not torch.equal(expected, plain)
    fuse(model)
    assert torch.equal(outcome(model)["y"], expected)
    assert calls.take() == 0
    remove_hook_from_module(target)
    assert torch.allclose(outcome(model)["y"], plain, rtol=1e-12)


def test_a_hook_of_accelerate_on_the_layer_itself(calls: Any) -> None:
    """It keeps the fused forward that was there, which is PEFT's after `unfuse`."""

    class Counts(ModelHook):
        calls = 0

        def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
            Counts.calls += 1
            return args, kwargs

    model = adapted()
    expected = outcome(model)["y"]
    fuse(model)
    add_hook_to_module(layer_of(model), Counts())
    assert torch.allclose(outcome(model)["y"], expected, rtol=1e-12)
    assert (calls.take(), Counts.calls) == (1, 1)
    unfuse(model)
    assert torch.equal(outcome(model)["y"], expected)
    assert (calls.take(), Counts.calls) == (0, 2)
