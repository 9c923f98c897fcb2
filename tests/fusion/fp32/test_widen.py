"""Whole models: 16-bit weights compute what the fp32 model computes, and train what it trains."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch

from peftlab.fusion import fuse, unfuse
from peftlab.fusion.fp32.frozen_linear import FrozenConv1D, FrozenLinear, WideEmbedding
from peftlab.fusion.fp32.widen import narrow, widen
from peftlab.methods.freeze import freeze
from tests.fusion.sixteen_bits import (
    SIXTEEN,
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
VARIANTS = [
    ("bert", {}),
    ("gpt2", {}),
    ("gpt2", {"tie_word_embeddings": False}),
    ("t5", {}),
    ("t5", {"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"}),
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True, "attention_bias": True}),
]
LAST_BLOCK = {
    "bert": ("bert.encoder.layer.1.", "classifier."),
    "gpt2": ("transformer.h.1.", "transformer.ln_f."),
    "t5": ("decoder.block.1.", "decoder.final_layer_norm."),
    "llama": ("model.layers.1.", "model.norm."),
    "bart": ("model.decoder.layers.0.",),
}


def trains_last_block(model: Any, family: str) -> Any:
    """Everything from the last block on trains in fp32, as method `last_n` has it."""
    freeze(model, {n for n, _ in model.named_parameters() if n.startswith(LAST_BLOCK[family])})
    return model


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", SIXTEEN)
@pytest.mark.parametrize(("family", "changes"), VARIANTS)
def test_without_adapters_it_equals_the_fp32_model(
    family: str, changes: dict[str, Any], dtype: torch.dtype, attention: str
) -> None:
    model = trains_last_block(tiny(family, dtype, attention, **changes), family)
    expected = outcome(in_fp32(model), inputs(family))
    report = widen(model)
    assert report.linears
    seen = SixteenBitOutputs().watch(model)
    assert_close(outcome(model, inputs(family)), expected)
    assert seen == []
    assert len(expected) > 6


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", SIXTEEN)
@pytest.mark.parametrize(("family", "changes"), VARIANTS)
def test_with_lora_it_equals_peft_on_the_fp32_model(
    family: str, changes: dict[str, Any], dtype: torch.dtype, attention: str
) -> None:
    model = adapted(tiny(family, dtype, attention, **changes))
    expected = outcome(in_fp32(model), inputs(family))
    report = fuse(model, activations="fp32")
    assert report.not_fused == ()
    seen = SixteenBitOutputs().watch(model.get_input_embeddings())
    assert_close(outcome(model, inputs(family)), expected)
    # Hooks on every module make the fused layers PEFT's own again: the same must come out.
    seen.watch(model)
    assert_close(outcome(model, inputs(family)), expected)
    assert seen == []


def test_the_watch_sees_16_bits() -> None:
    model = tiny("bert")
    seen = SixteenBitOutputs().watch(model)
    model(**inputs("bert"))
    assert len(seen) > 30


@pytest.mark.parametrize("family", FAMILIES)
def test_the_report_lists_what_stays_in_16_bits(family: str) -> None:
    model = tiny(family)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    size += sum(b.numel() * b.element_size() for b in model.buffers())
    report = widen(model)
    after = sum(p.numel() * p.element_size() for p in model.parameters())
    after += sum(b.numel() * b.element_size() for b in model.buffers())
    assert after - size == report.bytes_added > 0
    for name in report.linears:
        assert isinstance(model.get_submodule(name), (FrozenLinear, FrozenConv1D))
    for name in report.embeddings:
        assert isinstance(model.get_submodule(name), WideEmbedding)
    linears = [n for n, m in model.named_modules() if isinstance(m, (FrozenLinear, FrozenConv1D))]
    assert list(report.linears) == linears
    widened = {module.name: module for module in report.widened}
    reading = [name for name in widened if "reads the weight" in widened[name].reason]
    if family == "t5":
        assert reading == [n for n, _ in model.named_modules() if n.endswith(".wo")]
        assert widened[reading[0]].reason == "T5DenseActDense reads the weight itself"
        assert widened[reading[0]].bytes == 2 * 64 * 32
        assert model.get_submodule(reading[0]).weight.dtype is torch.float32
    else:
        assert reading == []
    assert all(
        "Norm" in module.kind for name, module in widened.items() if name not in reading
    ) or (family == "llama" and "LlamaRotaryEmbedding" in {m.kind for m in widened.values()})


@pytest.mark.parametrize(("family", "changes"), [*VARIANTS, ("bart", {})])
@pytest.mark.parametrize("lora", [False, True])
def test_narrow_restores_everything(family: str, changes: dict[str, Any], lora: bool) -> None:
    model = tiny(family, **changes)
    model = adapted(model) if lora else trains_last_block(model, family)
    before = state_of(model)
    again = widen(model), widen(model)
    assert again[0] == again[1]
    fuse(model, activations="fp32")
    changed = state_of(model)
    assert changed["classes"] != before["classes"]
    assert changed["ties"] == before["ties"]
    unfuse(model)
    assert_same_state(state_of(model), before)
    widen(model)
    narrow(model)
    assert_same_state(state_of(model), before)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing(family: str, reentrant: bool) -> None:
    model = adapted(tiny(family, **({"dropout_rate": 0.0} if family == "t5" else {})))
    expected = outcome(in_fp32(model), inputs(family))
    fuse(model, activations="fp32")
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    for module in model.modules():  # checkpointing wants training, the comparison no dropout
        module.training = hasattr(module, "gradient_checkpointing")
    assert_close(outcome(model, inputs(family)), expected)


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("family", ["gpt2", "t5", "llama"])
def test_generation_is_the_fp32_models(family: str, beams: int) -> None:
    model = adapted(tiny(family))
    plain = in_fp32(model)
    fuse(model, activations="fp32")
    seen = SixteenBitOutputs().watch(model)
    given = {k: v for k, v in inputs(family).items() if k != "labels"}
    if family != "t5":
        given = {k: v[2:] for k, v in given.items()}
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "num_beams": beams}
    settings |= {"pad_token_id": 0, "output_scores": True, "return_dict_in_generate": True}
    result, expected = model.generate(**given, **settings), plain.generate(**given, **settings)
    assert torch.equal(result.sequences, expected.sequences)
    for got, want in zip(result.scores, expected.scores, strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-5)
    assert seen == []


@pytest.mark.parametrize("how", ["deepcopy", "torch.save"])
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_copies_are_whole_models_of_their_own(family: str, how: str) -> None:
    model = adapted(tiny(family))
    before = state_of(model)
    expected = outcome(in_fp32(model), inputs(family))
    fuse(model, activations="fp32")
    if how == "deepcopy":
        twin = copy.deepcopy(model)
    else:
        file = io.BytesIO()
        torch.save(model, file)
        twin = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    assert_close(outcome(twin, inputs(family)), expected)
    saved, own = twin.state_dict(), model.state_dict()
    assert {k: v.dtype for k, v in saved.items()} == {k: v.dtype for k, v in own.items()}
    twin.zero_grad()
    unfuse(twin)
    assert_same_state(state_of(twin), before)
    # The original is fused as before.
    assert_close(outcome(model, inputs(family)), expected)
    assert model.state_dict().keys() == own.keys()


def test_a_model_of_shapes_alone() -> None:
    with torch.device("meta"):
        model = tiny("t5")
    before = [(n, p.dtype) for n, p in model.named_parameters()]
    meta, whole = fuse(model, activations="fp32"), fuse(tiny("t5"), activations="fp32")
    assert meta == whole
    ids = torch.zeros(2, 3, dtype=torch.long, device="meta")
    assert model(input_ids=ids, decoder_input_ids=ids).logits.dtype is torch.float32
    unfuse(model)
    assert [(n, p.dtype) for n, p in model.named_parameters()] == before


def test_an_fp32_model_is_left_alone() -> None:
    model = tiny("bert", torch.float32)
    before = state_of(model)
    report = widen(model)
    assert (report.linears, report.embeddings, report.widened) == ((), (), ())
    assert_same_state(state_of(model), before)
