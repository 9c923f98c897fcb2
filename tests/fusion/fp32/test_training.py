"""What PEFT and users do to a model afterwards: every tensor that trains gets its gradient."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from peftlab.fusion import fuse, unfuse
from peftlab.fusion.fp32.widen import narrow, widen
from tests.fusion.sixteen_bits import (
    SixteenBitOutputs,
    adapted,
    assert_close,
    assert_same_state,
    in_fp32,
    inputs,
    outcome,
    state_of,
    tiny,
)

FAMILIES = ("bert", "gpt2", "t5", "llama")
ROUNDED = 2**-8
"""How far a 16-bit gradient may be from the fp32 one: half a unit in bf16's last place."""

WHOLE: dict[str, list[str]] = {
    "bert": ["classifier", "LayerNorm", "word_embeddings"],
    "gpt2": ["ln_f", "c_proj", "wpe"],
    "t5": ["wo", "final_layer_norm"],
    "llama": ["lm_head", "norm", "embed_tokens"],
}
SOME = {"bert": ["query"], "gpt2": ["c_attn"], "t5": ["q"], "llama": ["q_proj"]}
OTHERS = {"bert": ["dense"], "gpt2": ["c_fc"], "t5": ["v", "wo"], "llama": ["down_proj"]}


def lora(family: str, targets: list[str], **others: Any) -> LoraConfig:
    return LoraConfig(
        r=3,
        target_modules=targets,
        fan_in_fan_out=family == "gpt2",
        init_lora_weights=False,
        **others,
    )


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("family", FAMILIES)
def test_modules_to_save(family: str, when: str) -> None:
    model: Any = tiny(family)
    config = lora(family, SOME[family], modules_to_save=WHOLE[family])
    if when == "after":
        fuse(model, activations="fp32")
    torch.manual_seed(3)
    model = get_peft_model(model, config).eval()
    expected = outcome(in_fp32(model), inputs(family))
    fuse(model, activations="fp32")
    assert_close(outcome(model, inputs(family)), expected, ROUNDED)
    assert sum("modules_to_save" in name for name in expected) >= len(WHOLE[family])


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_added_afterwards(family: str) -> None:
    model = adapted(tiny(family), target_modules=SOME[family])
    before = state_of(model)
    fuse(model, activations="fp32")
    torch.manual_seed(3)
    model.add_adapter("other", lora(family, SOME[family] + OTHERS[family]))
    model.set_adapter("other")
    expected = outcome(in_fp32(model), inputs(family))
    assert_close(outcome(model, inputs(family)), expected)
    report = fuse(model, activations="fp32")
    assert report.not_fused == ()
    seen = SixteenBitOutputs().watch(model.get_input_embeddings())
    assert_close(outcome(model, inputs(family)), expected)
    assert seen == []
    model.set_adapter("default")
    unfuse(model)
    kept = state_of(model)["bits"]
    assert all(torch.equal(kept[n][1], t) for n, (_, t) in before["bits"].items() if n in kept)


@pytest.mark.parametrize("how", ["unload", "merge_and_unload"])
@pytest.mark.parametrize("family", FAMILIES)
def test_unloading_and_then_training_everything(family: str, how: str) -> None:
    model = adapted(tiny(family))
    expected_state = state_of(getattr(copy.deepcopy(model), how)())
    fuse(model, activations="fp32")
    base = getattr(model, how)()
    plain = in_fp32(base)
    for every in (base, plain):
        every.requires_grad_(True)
    expected = outcome(plain, inputs(family))
    seen = SixteenBitOutputs().watch(base.get_input_embeddings())
    result = outcome(base, inputs(family))
    assert seen == []
    assert_close(result, expected, ROUNDED)
    assert len(result) == 2 + len(list(base.parameters()))
    base.requires_grad_(False)
    narrow(base)
    for name, (dtype, tensor) in expected_state["bits"].items():
        got = dict(base.named_parameters(remove_duplicate=False)) | dict(base.named_buffers())
        assert got[name].dtype is dtype
        torch.testing.assert_close(got[name], tensor, atol=0, rtol=2**-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_full_fine_tuning_after_widening_learns_as_in_fp32(family: str) -> None:
    """With what trains in fp32, as `methods.freeze` has it, a step is the fp32 model's."""
    from peftlab.methods.freeze import freeze

    model = tiny(family)
    widen(model)
    freeze(model, {name for name, _ in model.named_parameters()})
    plain = in_fp32(model)
    assert_close(outcome(model, inputs(family)), outcome(plain, inputs(family)))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("family", "settings"),
    [("llama", {"use_dora": True}), ("bert", {"lora_bias": True}), ("gpt2", {"use_rslora": True})],
)
def test_kinds_of_adapters(family: str, settings: dict[str, Any]) -> None:
    model = adapted(tiny(family), **settings)
    expected = outcome(in_fp32(model), inputs(family))
    fuse(model, activations="fp32")
    seen = SixteenBitOutputs().watch(model)
    assert_close(outcome(model, inputs(family)), expected)
    assert seen == []


def test_disabled_merged_and_mixed() -> None:
    model = adapted(tiny("llama"))
    model.add_adapter("other", lora("llama", SOME["llama"]))
    plain = in_fp32(model)
    fuse(model, activations="fp32")
    given = {k: v for k, v in inputs("llama").items() if k != "labels"}

    def logits(of: Any, **more: Any) -> torch.Tensor:
        with torch.no_grad():
            result: torch.Tensor = of(**given, **more).logits
        return result

    with model.disable_adapter(), plain.disable_adapter():
        torch.testing.assert_close(logits(model), logits(plain), atol=1e-5, rtol=1e-5)
    names = {"adapter_names": ["default", "other", "__base__"]}
    torch.testing.assert_close(logits(model, **names), logits(plain, **names), atol=1e-5, rtol=1e-5)
    unmerged = logits(model)
    model.merge_adapter()
    merged = logits(model)
    assert 0 < (merged - unmerged).abs().max() < 0.1  # the merge is rounded to 16 bits, as ever
    assert merged.dtype is torch.float32
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model), unmerged, atol=0.1, rtol=0)


def test_trainable_tokens() -> None:
    for tied in (False, True):
        model: Any = tiny("llama", tie_word_embeddings=tied)
        torch.manual_seed(3)
        config = lora("llama", SOME["llama"], trainable_token_indices=[5, 7, 11])
        model = get_peft_model(model, config).eval()
        given = inputs("llama")
        given["input_ids"][:, 6:8] = torch.tensor([5, 7])
        expected = outcome(in_fp32(model), given)
        report = fuse(model, activations="fp32")
        assert report.widened is not None
        assert any("TrainableTokensLayer" in w.reason for w in report.widened.widened)
        seen = SixteenBitOutputs().watch(model)
        assert_close(outcome(model, given), expected)
        assert seen == []


def test_adapters_on_embeddings() -> None:
    model = adapted(tiny("gpt2"), target_modules=["wte", "c_attn"])
    expected = outcome(in_fp32(model), inputs("gpt2"))
    fuse(model, activations="fp32")
    seen = SixteenBitOutputs().watch(model)
    assert_close(outcome(model, inputs("gpt2")), expected)
    assert seen == []


def test_bits_of_training_elsewhere_stay() -> None:
    """A module that stands twice in the model, and one that is no Transformers model at all."""
    torch.manual_seed(0)
    shared = nn.Linear(8, 8)
    model = nn.Sequential(shared, nn.Conv1d(5, 5, 3, padding=1), shared, nn.BatchNorm1d(5))
    model = model.requires_grad_(False).bfloat16().eval()
    plain, before = in_fp32(model), state_of(model)
    x = torch.randn(2, 5, 8)
    widen(model)
    assert torch.equal(model(x), plain(x))
    narrow(model)
    assert_same_state(state_of(model), before)


def test_int8_layers_take_and_give_fp32() -> None:
    pytest.importorskip("bitsandbytes")
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    from peftlab.model.mode import pin_training
    from peftlab.model.quantized import eight_bit_config

    plain = tiny("llama", attention_bias=True)
    config = eight_bit_config(("lm_head",))
    model = replace_with_bnb_linear(
        copy.deepcopy(plain), modules_to_not_convert=["lm_head"], quantization_config=config
    )
    import bitsandbytes as bnb

    for name, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear8bitLt):
            source = plain.get_submodule(name)
            module.weight = bnb.nn.Int8Params(source.weight.data, requires_grad=False).to("cpu")
            if source.bias is not None:
                module.bias = nn.Parameter(source.bias.data, requires_grad=False)
            pin_training(module)
    model.eval()
    model = adapted(model, target_modules=["q_proj", "down_proj"])
    expected = outcome(in_fp32(model), inputs("llama"))
    report = fuse(model, activations="fp32", arithmetic="w8a16")
    assert report.widened is not None
    assert report.widened.linears == ("base_model.model.lm_head",)
    seen = SixteenBitOutputs().watch(model)
    assert_close(outcome(model, inputs("llama")), expected)
    assert seen == []


@pytest.mark.parametrize("when", ["before", "after"])
def test_offloaded_weights(when: str) -> None:
    from accelerate import cpu_offload

    model = tiny("t5")
    expected = outcome(in_fp32(model), inputs("t5"))
    if when == "after":
        widen(model)
    cpu_offload(model, execution_device=torch.device("cpu"))
    report = widen(model)
    assert bool(report.linears) is (when == "after")
    reasons = {module.reason for module in report.widened}
    assert ("its forward is replaced on the instance" in reasons) is (when == "before")
    with torch.no_grad():
        assert_close(outcome(model, inputs("t5")), expected)
