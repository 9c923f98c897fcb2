"""8-bit layers, ours and bitsandbytes', with an adapter and without, through `fuse`."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from peftlab.fusion import fuse, unfuse
from peftlab.fusion.int8.gate import gate_of
from peftlab.fusion.int8.layers import int8_weight_of
from peftlab_kernels import reference
from peftlab_kernels.eager.int8_backend import EagerInt8Kernels
from peftlab_kernels.int8_format import Int8Weight
from tests.fusion.common import (
    K,
    N,
    assert_same,
    batch,
    layer_of,
    model_outcome,
    outcome,
    some_input,
)
from tests.fusion.eight_bits import KINDS, adapted_layer, adapted_model, eight_bit

pytestmark = pytest.mark.filterwarnings("ignore:.*MatMul8bitLt")


@pytest.fixture(autouse=True)
def codes_up_to_127(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference's codes; where oneDNN would multiply without VNNI, activations have 7 bits."""
    kernels = EagerInt8Kernels("fp32", "fp32")
    monkeypatch.setattr("peftlab_kernels.backends.eager_int8_kernels", lambda x: kernels)


def truth(model: Any, arithmetic: Any) -> dict[str, Tensor]:
    """`outcome` of a model of one layer, by the float64 reference."""
    layer = layer_of(model)
    weight = int8_weight_of(layer.base_layer)
    assert isinstance(weight, Int8Weight)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x = some_input((2, 3, K), torch.float32).double().view(6, K)
    dy = torch.randn(
        (2, 3, N), generator=torch.Generator().manual_seed(2), dtype=torch.float64
    ).float()
    shared: Any = {
        "codes": weight.codes,
        "scales": weight.scales.double(),
        "lora_a": a.detach().double(),
        "lora_b": b.detach().double(),
        "scaling": layer.scaling["default"],
        "arithmetic": arithmetic,
    }
    y = reference.int8_lora_linear(x, bias=layer.base_layer.bias.double(), **shared)
    result = reference.int8_lora_linear_backward(dy.double().view(6, N), x, **shared)
    prefix = "base_model.model.layer"
    return {
        "y": y.view(2, 3, N).float(),
        "x": result.x.view(2, 3, K).float(),
        f"{prefix}.lora_A.default.weight": result.lora_a.float(),
        f"{prefix}.lora_B.default.weight": result.lora_b.float(),
    }


def whole(model: Any) -> dict[str, Tensor]:
    return outcome(model, some_input((2, 3, K), torch.float32))


@pytest.mark.parametrize("arithmetic", ["w8a8", "w8a16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fused_layer_is_the_reference(kind: str, arithmetic: Any) -> None:
    model = adapted_layer(kind)
    expected = truth(model, arithmetic)
    report = fuse(model, arithmetic=arithmetic)
    assert len(report.fused) == 1
    assert report.not_fused == ()
    assert [gate.arithmetic for gate in report.gates.values()] == [arithmetic]
    assert_same(whole(model), expected, 2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_evaluation_are_one_function(kind: str) -> None:
    model = adapted_model(kind)
    fuse(model, arithmetic="w8a8")
    inputs = batch("llama")
    trained = model_outcome(model.train(), inputs)
    assert_same(model_outcome(model.eval(), inputs), trained, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_disabled_adapter_is_our_frozen_layer(kind: str) -> None:
    model = adapted_layer(kind)
    fuse(model, arithmetic="w8a8")
    weight = int8_weight_of(layer_of(model).base_layer)
    assert isinstance(weight, Int8Weight)
    x = some_input((4, K), torch.float32)
    nothing = torch.zeros(1, K), torch.zeros(N, 1)
    bias = layer_of(model).base_layer.bias
    expected = reference.int8_lora_linear(
        x.double(), weight.codes, weight.scales.double(), *(t.double() for t in nothing),
        scaling=1.0, arithmetic="w8a8", bias=bias.double(),
    )  # fmt: skip
    for mode in (True, False):
        with model.train(mode).disable_adapter():
            assert_same({"y": model(x)}, {"y": expected.float()}, 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_without_an_adapter_are_swapped_and_back(kind: str) -> None:
    torch.manual_seed(0)
    model: Any = torch.nn.Sequential(eight_bit(kind, torch.nn.Linear(K, N)))
    plain = type(model[0])
    report = fuse(model, arithmetic="w8a8")
    assert list(report.gates) == ["0"]
    assert type(model[0]) is not plain
    assert isinstance(model[0], plain)
    fuse(model, arithmetic="w8a8")
    unfuse(model)
    assert type(model[0]) is plain
    assert gate_of(model[0]) is None


@pytest.mark.parametrize("kind", KINDS)
def test_state_copies_and_pickles(kind: str) -> None:
    model = adapted_layer(kind)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    fuse(model, arithmetic="w8a8")
    expected = whole(model)
    assert_same(dict(model.state_dict()), before, 0)
    assert_same(whole(copy.deepcopy(model)), expected, 0)
    assert_same(whole(pickle.loads(pickle.dumps(model))), expected, 0)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert_same(whole(torch.load(file, weights_only=False)), expected, 0)


def test_bitsandbytes_after_its_own_forward_has_moved_the_scales() -> None:
    model = adapted_layer("bitsandbytes")
    whole(model)
    assert layer_of(model).base_layer.weight.SCB is None
    expected = truth(model, "w8a8")
    fuse(model, arithmetic="w8a8")
    assert_same(whole(model), expected, 2e-6)
    unfuse(model)
    whole(model)


def test_an_unquantised_layer_of_bitsandbytes_is_left_to_it() -> None:
    import bitsandbytes as bnb

    layer = bnb.nn.Linear8bitLt(K, N, has_fp16_weights=False)
    assert "not been quantised" in str(int8_weight_of(layer))
    trained = bnb.nn.Linear8bitLt(K, N, has_fp16_weights=True)
    assert "16 bits as well" in str(int8_weight_of(trained))
    model = torch.nn.Sequential(trained)
    x = torch.randn(3, K)
    fuse(model, arithmetic="w8a8")
    model(x.half()).sum().backward()
    assert trained.weight.grad is not None


def test_merging_into_codes_is_refused() -> None:
    model = adapted_layer("ours")
    fuse(model)
    before = layer_of(model).base_layer.weight.clone()
    with pytest.raises(ValueError, match="8-bit codes"):
        model.merge_adapter()
    assert torch.equal(layer_of(model).base_layer.weight, before)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("arithmetic", ["auto", "w8a8"])
def test_gradient_checkpointing(arithmetic: Any, reentrant: bool) -> None:
    model, plain = adapted_model("ours"), adapted_model("ours")
    for each in (model, plain):
        each.enable_input_require_grads()
        fuse(each, arithmetic=arithmetic)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    inputs = batch("llama")
    for _ in range(7):
        assert_same(model_outcome(model, inputs), model_outcome(plain, inputs), 1e-6)
    gates = [gate_of(m) for m in model.modules()]
    assert {g.verdict for g in gates if g} == {("w8a8" if arithmetic == "auto" else None)}


def test_dtypes_and_autocast() -> None:
    model = adapted_layer("ours")
    fuse(model, arithmetic="w8a8")
    x = some_input((2, 3, K), torch.float32)
    expected = model(x)
    for dtype in (torch.bfloat16, torch.float16):
        y = model(x.to(dtype))
        assert y.dtype is dtype
        assert_same({"y": y.float()}, {"y": expected}, 2e-2)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    assert y.dtype is torch.bfloat16
    assert_same({"y": y.float()}, {"y": expected}, 2e-2)


def test_arithmetic_that_is_none_is_refused() -> None:
    model = adapted_layer("ours")
    with pytest.raises(ValueError, match="arithmetic is 'w4a4'; it must be one of auto, w8a8"):
        fuse(model, arithmetic="w4a4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tolerance is -1"):
        fuse(model, tolerance=-1)
