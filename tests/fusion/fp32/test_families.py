"""`widen` depends on no family: many of them, padded, equal the same models in fp32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from peftlab.fusion.fp32.widen import narrow, widen
from tests.fusion.sixteen_bits import (
    SixteenBitOutputs,
    assert_same_state,
    in_fp32,
    inputs,
    state_of,
)

PLAIN: dict[str, Any] = {
    "vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 64,
}  # fmt: skip
GROUPED = PLAIN | {"num_key_value_heads": 1, "pad_token_id": 0}
ENCODER, DECODER, BOTH = "bert", "llama", "t5"

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Albert": (ENCODER, PLAIN | {"embedding_size": 16}),
    "DebertaV2": (
        ENCODER,
        PLAIN | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8,
                 "norm_rel_ebd": "layer_norm"},
    ),
    "DistilBert": (ENCODER, {"vocab_size": 200, "dim": 32, "n_layers": 2, "n_heads": 2,
                             "hidden_dim": 48}),
    "Electra": (ENCODER, PLAIN | {"embedding_size": 16}),
    "ModernBert": (ENCODER, PLAIN | {"pad_token_id": 0}),
    "MPNet": (ENCODER, PLAIN),
    "Roberta": (ENCODER, PLAIN | {"max_position_embeddings": 66}),
    "XLNet": (ENCODER, {"vocab_size": 200, "d_model": 32, "n_layer": 2, "n_head": 2,
                        "d_inner": 48}),
    "Bloom": (DECODER, {"vocab_size": 200, "hidden_size": 32, "n_layer": 2, "n_head": 2}),
    "Falcon": (DECODER, PLAIN | {"alibi": True}),
    "Gemma2": (DECODER, GROUPED | {"head_dim": 16}),
    "Gemma3Text": (DECODER, GROUPED | {"head_dim": 16}),
    "GPTJ": (DECODER, {"vocab_size": 200, "n_embd": 32, "n_layer": 2, "n_head": 2,
                       "rotary_dim": 8, "n_positions": 64}),
    "GPTNeoX": (DECODER, PLAIN),
    "Granite": (DECODER, GROUPED),
    "Mamba": (DECODER, {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2,
                        "state_size": 4}),
    "Mixtral": (DECODER, GROUPED | {"num_local_experts": 2}),
    "OPT": (DECODER, {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2,
                      "num_attention_heads": 2, "ffn_dim": 48, "word_embed_proj_dim": 32,
                      "max_position_embeddings": 64}),
    "Phi3": (DECODER, GROUPED),
    "Qwen3": (DECODER, GROUPED | {"head_dim": 16}),
    "Bart": (BOTH, {"vocab_size": 200, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
                    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_attention_heads": 2,
                    "decoder_attention_heads": 2, "max_position_embeddings": 64}),
    "MT5": (BOTH, {"vocab_size": 200, "d_model": 32, "d_ff": 48, "d_kv": 16, "num_layers": 2,
                   "num_heads": 2, "decoder_start_token_id": 0}),
}  # fmt: skip
HEADS = {
    ENCODER: "AutoModelForSequenceClassification",
    DECODER: "AutoModelForCausalLM",
    BOTH: "AutoModelForSeq2SeqLM",
}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_equals_the_fp32_model(family: str, attention: str) -> None:
    kind, settings = FAMILIES[family]
    config = getattr(transformers, f"{family}Config")(**settings)
    torch.manual_seed(0)
    try:
        model: Any = getattr(transformers, HEADS[kind]).from_config(
            config, attn_implementation=attention
        )
    except ValueError as unsupported:
        pytest.skip(f"no {attention} attention: {unsupported}"[:60])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.1)
    model = model.requires_grad_(False).bfloat16().eval()
    plain, before = in_fp32(model), state_of(model)
    widen(model)
    seen = SixteenBitOutputs().watch(model)
    given = inputs(kind)
    with torch.no_grad():
        torch.testing.assert_close(
            model(**given).logits, plain(**given).logits, atol=1e-5, rtol=1e-5
        )
    assert seen == []
    for module in model.modules():
        module._forward_hooks.clear()
    narrow(model)
    assert_same_state(state_of(model), before)
