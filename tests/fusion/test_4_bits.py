"""Adapters over bitsandbytes' 4-bit layers: its product, our low-rank part, PEFT's results."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from peftlab.fusion import fuse, unfuse

from .common import N, R, assert_same, layer_of, outcome, some_input

bnb = pytest.importorskip("bitsandbytes")


def adapted_4bit(dtype: torch.dtype, **config: Any) -> Any:
    torch.manual_seed(0)
    linear = nn.Linear(64, N)
    base: Any = bnb.nn.Linear4bit(64, N, compute_dtype=dtype, quant_type="nf4")
    base.load_state_dict(linear.state_dict())
    model: Any = nn.Sequential(base.to("cpu"))
    model.is_loaded_in_4bit = True
    settings = {"r": R, "lora_alpha": 7, "target_modules": ["0"], "init_lora_weights": False}
    return get_peft_model(model, LoraConfig(**settings | config)).train()


def whole(model: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return outcome(model, some_input((2, 3, 64), dtype))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("lora_bias", [False, True])
def test_equal_to_peft(dtype: torch.dtype, bound: float, lora_bias: bool) -> None:
    model = adapted_4bit(dtype, lora_bias=lora_bias)
    expected = whole(model, dtype)
    report = fuse(model)
    assert report.not_fused == ()
    assert len(report.fused) == 1
    assert type(layer_of(model)).__name__ == "FusedLora4bit"
    assert_same(whole(model, dtype), expected, bound)
    assert_same(whole(copy.deepcopy(model), dtype), expected, bound)
    unfuse(model)
    assert type(layer_of(model)).__name__ == "Linear4bit"
    assert_same(whole(model, dtype), expected, 0)


def test_no_wide_copy_of_x_is_saved() -> None:
    model = adapted_4bit(torch.bfloat16)
    fuse(model)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        model(some_input((2, 3, 64), torch.bfloat16).requires_grad_())
    wide = [t for t in saved if t.dtype is torch.float32 and t.shape[-1] == 64 and t.dim() > 2]
    assert wide == []


def test_disabled_and_two_adapters_are_pefts() -> None:
    model = adapted_4bit(torch.float32)
    model.add_adapter("other", model.peft_config["default"])
    model.base_model.set_adapter(["default", "other"])
    expected = whole(model, torch.float32)
    fuse(model)
    assert_same(whole(model, torch.float32), expected, 0)
    with model.disable_adapter():
        base = model(some_input((2, 3, 64), torch.float32))
    assert not torch.equal(base, expected["y"])
