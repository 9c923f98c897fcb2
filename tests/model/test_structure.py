"""Blocks, heads and what comes between, detected in models of many families without a table."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from peftlab.errors import CheckFailed
from peftlab.model.mode import pin_eval, pin_training, unpin
from peftlab.model.structure import (
    after_blocks,
    base_modules,
    block_lists,
    head_modules,
    is_tied,
    parameters_under,
)

SMALL: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32,
}  # fmt: skip
CLASSES, CAUSAL = "AutoModelForSequenceClassification", "AutoModelForCausalLM"

# model type, its settings, head, stacks, the head's modules, modules after the blocks
FOUND: list[tuple[str, dict[str, Any], str, list[str], tuple[str, ...], tuple[str, ...]]] = [
    ("bert", SMALL, CLASSES, ["bert.encoder.layer"], ("classifier",), ("bert.pooler",)),
    ("roberta", SMALL, CLASSES, ["roberta.encoder.layer"], ("classifier",), ()),
    ("distilbert", {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2}, CLASSES,
     ["distilbert.transformer.layer"], ("pre_classifier", "classifier"), ()),
    ("gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 2}, CAUSAL,
     ["transformer.h"], ("lm_head",), ("transformer.ln_f",)),
    ("gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 2}, "AutoModel", ["h"], (), ("ln_f",)),
    ("llama", SMALL, CAUSAL, ["model.layers"], ("lm_head",), ("model.norm",)),
    ("llama", SMALL, CLASSES, ["model.layers"], ("score",), ("model.norm",)),
    ("qwen2", SMALL | {"num_key_value_heads": 1}, CAUSAL,
     ["model.layers"], ("lm_head",), ("model.norm",)),
    ("opt", SMALL | {"ffn_dim": 32, "word_embed_proj_dim": 16}, CAUSAL,
     ["model.decoder.layers"], ("lm_head",), ("model.decoder.final_layer_norm",)),
    ("bloom", {"vocab_size": 60, "hidden_size": 16, "n_layer": 2, "n_head": 2}, CAUSAL,
     ["transformer.h"], ("lm_head",), ("transformer.ln_f",)),
    ("gpt_neox", SMALL, CAUSAL, ["gpt_neox.layers"], ("lm_head",),
     ("gpt_neox.final_layer_norm",)),
    ("t5", {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 2, "num_heads": 2}, CLASSES,
     ["transformer.encoder.block", "transformer.decoder.block"], ("classification_head",),
     ("transformer.encoder.final_layer_norm", "transformer.decoder.final_layer_norm")),
    ("t5", {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 2, "num_heads": 2},
     "AutoModelForSeq2SeqLM", ["encoder.block", "decoder.block"], ("lm_head",),
     ("encoder.final_layer_norm", "decoder.final_layer_norm")),
    ("bart", {"d_model": 16, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 32,
              "decoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2},
     "AutoModelForSeq2SeqLM", ["model.encoder.layers", "model.decoder.layers"], ("lm_head",),
     ()),
    ("modernbert", SMALL | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
                            "cls_token_id": 1, "sep_token_id": 2}, CLASSES,
     ["model.layers"], ("head", "classifier"), ("model.final_norm",)),
    ("mixtral", SMALL | {"num_local_experts": 2, "num_key_value_heads": 1}, CAUSAL,
     ["model.layers"], ("lm_head",), ("model.norm",)),
]  # fmt: skip


def build(kind: str, settings: dict[str, Any], auto: str) -> nn.Module:
    import transformers

    with torch.device("meta"):
        config = transformers.AutoConfig.for_model(kind, **settings)
        model: nn.Module = getattr(transformers, auto).from_config(config)
    return model


@pytest.mark.parametrize(
    ("kind", "settings", "auto", "stacks", "heads", "after"),
    FOUND,
    ids=[f"{f[0]}-{f[2]}" for f in FOUND],
)
@pytest.mark.filterwarnings("ignore")
def test_what_a_model_is_made_of(
    kind: str,
    settings: dict[str, Any],
    auto: str,
    stacks: list[str],
    heads: tuple[str, ...],
    after: tuple[str, ...],
) -> None:
    model = build(kind, settings, auto)
    assert [stack.name for stack in block_lists(model)] == stacks
    assert all(stack.count in (2, 3) for stack in block_lists(model))
    assert head_modules(model) == heads
    assert after_blocks(model) == after
    assert not set(base_modules(model)) & set(heads)


def test_tied_heads_are_seen() -> None:
    for tied in (True, False):
        model = build("llama", SMALL | {"tie_word_embeddings": tied}, CAUSAL)
        assert is_tied(model, "lm_head") is tied
        assert is_tied(model, "model.embed_tokens") is tied
        assert not is_tied(model, "model.norm")
        assert parameters_under(model, ["lm_head"]) == (set() if tied else {"lm_head.weight"})


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(CheckFailed, match="no list of equal blocks"):
        block_lists(nn.Sequential(nn.Linear(2, 2)))


def test_pinned_modes_outlast_the_whole_models() -> None:
    model = nn.Sequential(nn.Sequential(nn.Dropout(), nn.Linear(2, 2)), nn.Dropout())
    pin_eval(model[0])
    pin_training(model[1])
    for whole in (model.train(), model.eval(), model.train()):
        assert not any(module.training for module in whole[0].modules())
        assert whole[1].training
    unpin(model[0])
    assert all(module.training for module in model.train().modules())
