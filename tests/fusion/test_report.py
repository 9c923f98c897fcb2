"""The report: its contents, its text and its JSON."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from peftlab.fusion import FusionReport, NotFused, fuse

from .common import adapted_tiny


def test_it_reads_as_a_list_of_places() -> None:
    model = adapted_tiny("llama", target_modules=["q_proj", "up_proj", "embed_tokens"])
    model.base_model.model.model.layers[1].mlp.up_proj.base_layer.weight.requires_grad_()
    base = "base_model.model.model"
    only = "only PEFT's lora.Linear, Linear8bitLt and Linear4bit are fused"
    assert str(fuse(model)).splitlines() == [
        "3 of 5 adapted layers fused",
        f"  fused      {base}.layers.*.self_attn.q_proj (2 layers)",
        f"  fused      {base}.layers.*.mlp.up_proj",
        f"  not fused  {base}.embed_tokens (lora.Embedding): {only}",
        f"  not fused  {base}.layers.*.mlp.up_proj (lora.Linear): its base weight trains",
    ]


def test_it_is_json() -> None:
    model = adapted_tiny("bert", torch.bfloat16, target_modules=["query"])
    report = fuse(model)
    values = json.loads(json.dumps(report.to_json()))
    assert values == {
        "activations": "keep",
        "fused": [f"base_model.model.bert.encoder.layer.{i}.attention.self.query" for i in (0, 1)],
        "not_fused": [],
        "widened": None,
        "int8": {},
    }
    values = json.loads(json.dumps(fuse(model, "fp32").to_json()))
    assert values["activations"] == "fp32"
    assert values["widened"]["embeddings"] == [
        f"base_model.model.bert.embeddings.{kind}_embeddings"
        for kind in ("word", "position", "token_type")
    ]


def test_it_shows_where_fp32_takes_memory() -> None:
    lines = str(fuse(adapted_tiny("llama", torch.bfloat16), "fp32")).splitlines()
    (heading,) = [line for line in lines if line.startswith("fp32 activations")]
    # Two blocks of seven layers and the output layer.
    assert "15 linear layers and 1 embeddings keep 16-bit weights, 0.0 MiB more" in heading
    assert any("layers.*.input_layernorm (2 layers) (LlamaRMSNorm)" in line for line in lines)


def test_it_is_frozen() -> None:
    report = FusionReport("keep", ("a.0.b",), (NotFused("a.1.b", "lora.Linear", "why"),))
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.fused = ()  # type: ignore[misc]
