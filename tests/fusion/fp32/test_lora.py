"""`fuse(model, "fp32")` on PEFT models: fp32 into 16-bit bases, as PEFT on the fp32 model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from peftlab.fusion import fuse, unfuse
from peftlab.fusion.lora_layer import FusedLoraLinear
from tests.fusion.common import (
    adapted,
    adapted_tiny,
    assert_same,
    batch,
    layer_of,
    model_outcome,
    outcome,
    some_input,
    tiny,
)
from tests.fusion.test_families import FAMILIES

SIXTEEN = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", SIXTEEN)
@pytest.mark.parametrize("family", FAMILIES)
def test_equal_to_peft_on_the_fp32_model(family: str, dtype: torch.dtype, calls: Any) -> None:
    model = adapted_tiny(family, dtype)
    inputs = batch(family)
    expected = model_outcome(copy.deepcopy(model).float(), inputs)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    kinds = {name: type(module) for name, module in model.named_modules()}

    report = fuse(model, "fp32")
    assert (len(report.fused), report.not_fused) == (FAMILIES[family], ())
    assert report.widened is not None
    assert len(report.widened.linears) >= FAMILIES[family] - 4
    result = model_outcome(model, inputs)
    assert calls.take() == FAMILIES[family]
    assert_same(result, expected, 2e-5)

    unfuse(model)
    assert {name: type(module) for name, module in model.named_modules()} == kinds
    assert_same(dict(model.state_dict()), before, 0)


def test_the_weights_stay_in_16_bits(calls: Any) -> None:
    model = adapted_tiny("llama", torch.bfloat16)
    fuse(model, "fp32")
    adapted_bases = [m.base_layer for m in model.modules() if isinstance(m, FusedLoraLinear)]
    assert {base.weight.dtype for base in adapted_bases} == {torch.bfloat16}
    assert model(**batch("llama")).logits.dtype == torch.float32


def test_t5s_wo_is_fp32_and_the_report_says_so() -> None:
    model = adapted_tiny("t5", torch.bfloat16)
    report = fuse(model, "fp32")
    widened = {module.name: module for module in report.widened.widened}  # type: ignore[union-attr]
    wo = [module for name, module in widened.items() if ".wo" in name]
    assert len(wo) == 4
    assert all("reads the weight" in module.reason for module in wo)
    assert "reads the weight" in str(report)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("cast_adapters", [True, False], ids=["fp32 adapters", "adapters as base"])
def test_a_layer(kind: str, cast_adapters: bool, calls: Any) -> None:
    model = adapted(
        kind, torch.bfloat16, cast_adapters=cast_adapters, lora_bias=True, bias="lora_only"
    )
    x = some_input((4, 37), torch.float32)
    expected = outcome(copy.deepcopy(model).float(), x)
    fuse(model, "fp32")
    result = outcome(model, x)
    assert calls.take() == 1
    assert result["y"].dtype == torch.float32
    assert_same({"y": result["y"]}, {"y": expected["y"]}, 2e-6)
    for name, gradient in result.items():
        rounding = 2e-6 if gradient.dtype == torch.float32 else 1e-2
        error = (gradient.float() - expected[name]).norm() / expected[name].norm()
        assert error < rounding, name


def test_calls_that_fall_back_are_fp32_too(calls: Any) -> None:
    model = adapted_tiny("llama", torch.bfloat16)
    model.add_adapter("other", model.peft_config["default"])
    twin = copy.deepcopy(model).float()
    inputs = batch("llama")
    fuse(model, "fp32")

    def compare() -> None:
        assert_same(model_outcome(model, inputs), model_outcome(twin, inputs), 2e-5)
        assert calls.take() == 0

    for both in (model, twin):
        both.base_model.set_adapter(["default", "other"])
    compare()
    with model.disable_adapter(), twin.disable_adapter():
        compare()
    layer_of(model).base_layer.register_forward_hook(lambda *_: None)
    for both in (model, twin):
        both.set_adapter("other")
    assert_same(model_outcome(model, inputs), model_outcome(twin, inputs), 2e-5)
    assert calls.take() == 13, "all but the layer with a hook"


def test_new_adapters_need_fusing_again(calls: Any) -> None:
    from peft import LoraConfig

    model = adapted_tiny("llama", torch.bfloat16, target_modules=["q_proj"])
    fuse(model, "fp32")
    config = LoraConfig(r=3, target_modules=["v_proj", "lm_head"], init_lora_weights=False)
    model.add_adapter("other", config)
    model.set_adapter("other")
    expected = model_outcome(copy.deepcopy(model).float(), batch("llama"))
    assert_same(model_outcome(model, batch("llama")), expected, 2e-5)
    assert calls.take() == 0
    assert len(fuse(model, "fp32").fused) == 3
    assert_same(model_outcome(model, batch("llama")), expected, 2e-5)
    assert calls.take() == 3


def test_keep_changes_no_dtype_of_a_model_with_fp32_activations(calls: Any) -> None:
    model = adapted_tiny("llama", torch.bfloat16)
    fuse(model, "fp32")
    expected = model_outcome(model, batch("llama"))
    assert fuse(model).widened is None
    assert_same(model_outcome(model, batch("llama")), expected, 0)
    assert calls.take() == 28


def test_a_model_without_adapters() -> None:
    model = tiny("llama", torch.bfloat16)
    expected = copy.deepcopy(model).float()(**batch("llama")).logits
    report = fuse(model, "fp32")
    assert (report.fused, report.not_fused) == ((), ())
    assert torch.allclose(model(**batch("llama")).logits, expected, atol=1e-5)
    unfuse(model)
    assert {type(m) for m in model.modules() if isinstance(m, nn.Linear)} == {nn.Linear}


def test_merging_rounds_to_the_weights_dtype_as_pefts_does() -> None:
    model = adapted_tiny("llama", torch.bfloat16)
    twin = copy.deepcopy(model)
    fuse(model, "fp32")
    left, expected = model.merge_and_unload(), twin.merge_and_unload()
    got, want = left.state_dict(), expected.state_dict()
    assert_same(dict(got), dict(want), 0)


def test_16_bit_input_is_pefts(calls: Any) -> None:
    """A caller that hands over 16-bit activations gets what the unfused layer gives."""
    model = adapted("linear", torch.bfloat16)
    x = some_input((4, 37), torch.bfloat16)
    expected = outcome(model, x)
    fuse(model, "fp32")
    assert_same(outcome(model, x), expected, 2e-2)
    assert calls.take() == 1
