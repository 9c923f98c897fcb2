"""Which biases train, and in which dtype what is beside them rests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from peftlab.errors import CheckFailed
from peftlab.methods.apply import apply_method, load_trained, save_trained
from peftlab.methods.low_rank.biases import is_bias
from tests.methods.common import CLASSIFICATION, batch, load, method, step

Tiny = Callable[..., Path]


def test_norms_of_16_bits_are_widened_in_training_and_when_it_is_opened(
    tiny_checkpoint: Tiny, tmp_path: Path
) -> None:
    chosen = method("lora", r=2, dropout=0.0, bias="all")
    folder = tiny_checkpoint("bert")
    bases = [load(folder, CLASSIFICATION, chosen, seed=seed) for seed in (0, 4)]
    inputs = batch(bases[0])
    first, second = (base.model.bfloat16() for base in bases)
    made = apply_method(first, chosen, task=CLASSIFICATION)
    with torch.autocast("cpu", torch.bfloat16):
        step(made.model, inputs, CLASSIFICATION)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        want = made.model.eval()(**inputs).logits
    save_trained(made, tmp_path)
    opened = load_trained(second, chosen, tmp_path, task=CLASSIFICATION)
    for model in (made.model, opened.model):
        norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
        assert norms
        assert all(norm.weight.dtype == norm.bias.dtype == torch.float32 for norm in norms)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(opened.model.eval()(**inputs).logits, want)


def test_a_table_of_relative_positions_is_no_bias() -> None:
    model = transformers.MPNetForSequenceClassification(
        transformers.MPNetConfig(
            vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=40,
        )
    )  # fmt: skip
    chosen = method("lora", r=2, bias="all", target_modules=["q"])
    made = apply_method(model, chosen, task=CLASSIFICATION)
    assert not [name for name in made.trainable if "relative_attention_bias" in name]
    assert any(name.endswith("LayerNorm.bias") for name in made.trainable)


def test_a_model_whose_only_biases_are_tables_has_none(tiny_checkpoint: Tiny) -> None:
    chosen = method("lora", r=2, bias="all")
    folder = tiny_checkpoint("t5", "seq2seq")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    with pytest.raises(CheckFailed, match="it has no bias"):
        apply_method(model, chosen, task="seq2seq")


def test_biases_of_modules_that_were_replaced_are_left_out() -> None:
    assert is_bias("base_model.model.norm.bias", "all")
    assert not is_bias("base_model.model.classifier.original_module.bias", "all")
    assert not is_bias("base_model.model.norm.bias", "lora_only")
