"""What a user does with a PEFT model after `fuse`: it stays a PEFT model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from peft.tuners import lora
from torch import nn

import peftlab
from peftlab.fusion import fuse, unfuse
from peftlab.fusion.lora_layer import FusedLoraLinear

from .common import K, adapted, adapted_tiny, assert_same, batch, model_outcome, outcome, tiny

LAYERS = 14
"""Linear layers of the tiny Llama."""


@pytest.fixture
def llama() -> Any:
    return adapted_tiny("llama")


def fused_layers(model: nn.Module) -> int:
    return sum(type(module) is FusedLoraLinear for module in model.modules())


def test_the_package_offers_it(llama: Any) -> None:
    assert isinstance(peftlab.fuse(llama), peftlab.FusionReport)
    peftlab.unfuse(llama)
    assert fused_layers(llama) == 0


def test_nothing_but_the_class_changes(llama: Any) -> None:
    layers = [m for m in llama.modules() if isinstance(m, lora.Linear)]
    before = {n: t.data_ptr() for n, t in llama.state_dict().items()}
    attributes = [dict(vars(layer)) for layer in layers]
    fuse(llama)
    assert fused_layers(llama) == LAYERS
    assert {n: t.data_ptr() for n, t in llama.state_dict().items()} == before
    assert [dict(vars(layer)) for layer in layers] == attributes
    unfuse(llama)
    assert {type(layer) for layer in layers} == {lora.Linear}


def test_twice_is_once(llama: Any, calls: Any) -> None:
    first = fuse(llama)
    expected = model_outcome(llama, batch("llama"))
    assert fuse(llama) == first
    assert_same(model_outcome(llama, batch("llama")), expected, 0)
    assert calls.take() == 2 * LAYERS
    unfuse(llama)
    unfuse(llama)
    assert fused_layers(llama) == 0


def test_unfused_it_is_peft_bit_by_bit(llama: Any, calls: Any) -> None:
    expected = model_outcome(llama, batch("llama"))
    fuse(llama)
    unfuse(llama)
    assert_same(model_outcome(llama, batch("llama")), expected, 0)
    assert calls.take() == 0


def test_a_model_without_adapters(calls: Any) -> None:
    model = tiny("llama")
    report = fuse(model)
    assert (report.fused, report.not_fused) == ((), ())
    unfuse(model)


def test_the_activations_must_be_known(llama: Any) -> None:
    with pytest.raises(ValueError, match="activations is 'fp16'; it must be one of keep, fp32"):
        fuse(llama, activations="fp16")  # type: ignore[arg-type]


def test_new_layers_are_fused_by_fusing_again(calls: Any) -> None:
    model = adapted_tiny("llama", target_modules=["q_proj"])
    assert len(fuse(model).fused) == 2
    config = LoraConfig(r=3, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model.add_adapter("wider", config)
    model.double().set_adapter("wider")
    model_outcome(model, batch("llama"))
    assert calls.take() == 2, "the new layers are PEFT's as yet"
    report = fuse(model)
    assert len(report.fused) == 4
    result = model_outcome(model, batch("llama"))
    assert calls.take() == 4
    unfuse(model)
    assert_same(result, model_outcome(model, batch("llama")), 1e-12)

    fuse(model)
    model.set_adapter("default")
    assert len(fuse(model).fused) == 2
    model_outcome(model, batch("llama"))
    assert calls.take() == 2, "v_proj has no such adapter and computes its base"
    model.delete_adapter("wider")
    model_outcome(model, batch("llama"))
    assert calls.take() == 2


def test_merge_and_unmerge(llama: Any, calls: Any) -> None:
    inputs = batch("llama")
    unmerged = model_outcome(llama, inputs)
    llama.merge_adapter()
    merged = model_outcome(llama, inputs)
    llama.unmerge_adapter()

    fuse(llama)
    for safe in (False, True):
        llama.merge_adapter(safe_merge=safe)
        assert_same(model_outcome(llama, inputs), merged, 1e-12)
        assert calls.take() == 0
        llama.unmerge_adapter()
        assert_same(model_outcome(llama, inputs), unmerged, 1e-11)
        assert calls.take() == LAYERS


@pytest.mark.parametrize("merge", [True, False])
def test_unload(merge: bool, llama: Any, calls: Any) -> None:
    twin = copy.deepcopy(llama)
    fuse(llama)
    unload = "merge_and_unload" if merge else "unload"
    left, expected = getattr(llama, unload)(), getattr(twin, unload)()
    assert not [m for m in left.modules() if isinstance(m, lora.LoraLayer)]
    inputs = batch("llama")
    assert torch.equal(left(**inputs).logits, expected(**inputs).logits)
    assert calls.take() == 0
    # Full fine-tuning of what is left.
    left.requires_grad_(True)
    assert len(model_outcome(left, inputs)) == 2 + len(list(left.parameters()))


def test_disabled_adapters(llama: Any, calls: Any) -> None:
    inputs = batch("llama")
    with llama.disable_adapter(), torch.no_grad():
        base = llama(**inputs).logits
        fuse(llama)
        assert torch.equal(llama(**inputs).logits, base)
    assert calls.take() == 0
    assert not torch.equal(llama(**inputs).logits, base)
    assert calls.take() == LAYERS


def test_disabling_merged_adapters_unmerges_them(llama: Any, calls: Any) -> None:
    fuse(llama)
    llama.merge_adapter()
    with llama.disable_adapter():
        llama(**batch("llama"))
    assert calls.take() == 0
    model_outcome(llama, batch("llama"))
    assert calls.take() == LAYERS


def test_several_adapters(llama: Any, calls: Any) -> None:
    torch.manual_seed(1)
    llama.add_adapter("other", llama.peft_config["default"])
    llama.double()
    inputs = batch("llama")
    expected = {}
    for names in ("default", "other", ["default", "other"]):
        llama.base_model.set_adapter(names)
        expected[str(names)] = model_outcome(llama, inputs)
    fuse(llama)
    for names, number in (("other", LAYERS), ("default", LAYERS), (["default", "other"], 0)):
        llama.base_model.set_adapter(names)
        result = model_outcome(llama, inputs)
        assert calls.take() == number
        assert_same(result, expected[str(names)], 1e-12 if number else 0)


def test_a_batch_of_several_adapters(llama: Any, calls: Any) -> None:
    llama.add_adapter("other", llama.peft_config["default"])
    llama.double().eval()
    inputs = batch("llama") | {"adapter_names": ["other", "__base__", "default"]}
    with torch.no_grad():
        expected = llama(**inputs).logits
        fuse(llama)
        assert torch.equal(llama(**inputs).logits, expected)
        assert calls.take() == 0
        del inputs["adapter_names"]
        llama(**inputs)
        assert calls.take() == LAYERS


def test_scaling_is_read_at_every_call(llama: Any, calls: Any) -> None:
    from peft.helpers import rescale_adapter_scale

    fuse(llama)
    inputs = batch("llama")
    whole = llama(**inputs).logits
    with rescale_adapter_scale(llama, 0.5), torch.no_grad():
        half = llama(**inputs).logits
        assert calls.take() == 2 * LAYERS
        unfuse(llama)
        assert torch.allclose(half, llama(**inputs).logits, rtol=1e-12)
    assert not torch.allclose(half, whole)


def test_deepcopy(llama: Any, calls: Any) -> None:
    fuse(llama)
    twin = copy.deepcopy(llama)
    expected = model_outcome(llama, batch("llama"))
    calls.clear()
    assert_same(model_outcome(twin, batch("llama")), expected, 0)
    assert calls.take() == LAYERS
    unfuse(twin)
    assert (fused_layers(twin), fused_layers(llama)) == (0, LAYERS)


def test_saved_whole_by_torch(llama: Any, calls: Any, tmp_path: Path) -> None:
    fuse(llama)
    expected = model_outcome(llama, batch("llama"))
    torch.save(llama, tmp_path / "model.pt")
    read = torch.load(tmp_path / "model.pt", weights_only=False)
    calls.clear()
    assert_same(model_outcome(read, batch("llama")), expected, 0)
    assert calls.take() == LAYERS


def test_saved_and_loaded_as_an_adapter(llama: Any, calls: Any, tmp_path: Path) -> None:
    llama.save_pretrained(tmp_path / "plain")
    fuse(llama)
    expected = model_outcome(llama, batch("llama"))
    llama.save_pretrained(tmp_path / "fused")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "fused" / name).read_bytes()

    read = PeftModel.from_pretrained(tiny("llama"), tmp_path / "fused", is_trainable=True).eval()
    assert fused_layers(read) == 0
    calls.clear()
    assert_same(model_outcome(read, batch("llama")), expected, 1e-12)
    assert calls.take() == 0

    with torch.no_grad():
        for layer in read.modules():
            if isinstance(layer, lora.Linear):
                layer.lora_B["default"].weight.zero_()
    fuse(read)
    read.load_adapter(tmp_path / "fused", "again", is_trainable=True)
    read.set_adapter("again")
    result = model_outcome(read, batch("llama"))
    assert calls.take() == LAYERS
    assert torch.allclose(result["logits"], expected["logits"], rtol=1e-12)


def test_modules_that_are_saved_whole_train_beside_it(calls: Any) -> None:
    model = adapted_tiny("bert", target_modules=["query"], modules_to_save=["classifier"])
    expected = model_outcome(model, batch("bert"))
    assert len(fuse(model).fused) == 2
    result = model_outcome(model, batch("bert"))
    assert calls.take() == 2
    assert_same(result, expected, 1e-12)
    assert any("modules_to_save" in name for name in result)


def test_generate(llama: Any, calls: Any) -> None:
    ids = batch("llama")["input_ids"][:1]
    settings: Any = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    expected = llama.generate(input_ids=ids, **settings)
    fuse(llama)
    assert torch.equal(llama.generate(input_ids=ids, **settings), expected)
    assert calls.take() == 4 * LAYERS


def test_another_method_of_peft_is_left_alone_and_reported(calls: Any) -> None:
    from peft import IA3Config, get_peft_model

    config = IA3Config(target_modules=["q_proj"], feedforward_modules=[])
    model = get_peft_model(tiny("llama"), config)
    report = fuse(model)
    assert report.fused == ()
    assert {layer.reason for layer in report.not_fused} == {"its adapter is not LoRA (ia3.Linear)"}
    model(**batch("llama"))
    assert calls.take() == 0


def test_trained_tokens_are_nothing_to_fuse(calls: Any) -> None:
    model = adapted_tiny(
        "llama", target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [3, 5]}
    )
    expected = model_outcome(model, batch("llama"))
    report = fuse(model)
    assert report.not_fused == ()
    assert_same(model_outcome(model, batch("llama")), expected, 1e-12)
    assert calls.take() == len(report.fused) == 2


def test_layers_that_are_not_linear_are_reported(calls: Any) -> None:
    model = adapted_tiny("llama", target_modules=["embed_tokens", "q_proj"])
    expected = model_outcome(model, batch("llama"))
    report = fuse(model)
    (layer,) = report.not_fused
    assert (layer.name, layer.kind) == ("base_model.model.model.embed_tokens", "lora.Embedding")
    assert layer.reason == "only PEFT's lora.Linear, Linear8bitLt and Linear4bit are fused"
    assert_same(model_outcome(model, batch("llama")), expected, 1e-12)
    assert calls.take() == 2


def test_a_layer_whose_forward_was_replaced_is_not_touched(calls: Any) -> None:
    model = adapted()
    layer = model.base_model.model.layer
    own = layer.forward
    layer.forward = lambda x: own(x) + 1
    expected = outcome(model)
    (entry,) = fuse(model).not_fused
    assert "its forward is replaced on the instance" in entry.reason
    assert type(layer) is lora.Linear
    assert_same(outcome(model), expected, 0)
    assert calls.take() == 0


def test_a_forward_that_is_wrapped_after_fusing_wraps_the_kernels(calls: Any) -> None:
    model = adapted()
    fuse(model)
    layer = model.base_model.model.layer
    own = layer.forward
    layer.forward = lambda x: own(x) + 1
    expected = own(torch.ones(1, K).double()) + 1
    assert torch.equal(model(torch.ones(1, K).double()), expected)
    assert calls.take() == 2
    assert fuse(model).not_fused == ()


def test_a_class_made_from_the_fused_one_cannot_be_unfused(llama: Any, calls: Any) -> None:
    """As `fully_shard` on the layer itself makes one; it computes with the kernels all the same."""
    fuse(llama)
    name, layer = next((n, m) for n, m in llama.named_modules() if isinstance(m, FusedLoraLinear))
    layer.__class__ = type("FSDPFusedLoraLinear", (FusedLoraLinear,), {})
    assert len(fuse(llama).fused) == LAYERS
    llama(**batch("llama"))
    assert calls.take() == LAYERS
    with pytest.raises(TypeError, match=f"{name} is a FSDPFusedLoraLinear"):
        unfuse(llama)
    assert fused_layers(llama) == LAYERS - 1


def test_a_model_of_shapes_alone_shows_what_would_be_fused() -> None:
    with torch.device("meta"):
        model = adapted_tiny("llama", target_modules=["q_proj", "embed_tokens"])
    report = fuse(model)
    assert (len(report.fused), len(report.not_fused)) == (2, 1)
