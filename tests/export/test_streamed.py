"""A model given one module's weights at a time computes what it does with all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from peftlab.export.skeleton import Skeleton, skeleton
from peftlab.export.streamed import logits, sample_inputs, streamed
from peftlab.model.checkpoint import read_checkpoint_config

FAMILIES = {"bert": "classification", "gpt2": "causal", "t5": "seq2seq", "llama": "causal"}
pytestmark = pytest.mark.poison_empty(False)


def built(folder: Path, **updates: Any) -> Skeleton:
    keys = load_file(folder / "model.safetensors")
    checkpoint = read_checkpoint_config(str(folder))
    return skeleton(checkpoint, keys, auto_class=None, updates=updates)


@pytest.mark.parametrize("family", ["gpt2", "t5", "llama"])
def test_it_computes_as_the_whole_model_and_keeps_no_weight(
    family: str, tiny_checkpoint: Any
) -> None:
    folder = tiny_checkpoint(family, FAMILIES[family])
    model_skeleton = built(folder)
    whole = type(model_skeleton.model).from_pretrained(folder).eval()
    state = {**dict(whole.named_parameters(remove_duplicate=False)), **dict(whole.named_buffers())}
    requested: list[str] = []

    def weights(name: str) -> torch.Tensor:
        requested.append(name)
        return state[name].detach().clone()

    inputs = sample_inputs(model_skeleton)
    with streamed(model_skeleton, weights, {}) as model:
        held = logits(model, inputs)
        assert all(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(held, logits(whole, inputs))
    given = {id(state[name]) for name in requested}
    assert {id(parameter) for parameter in whole.parameters()} <= given


def test_a_layer_of_its_own_is_made_at_each_call(tiny_checkpoint: Any) -> None:
    folder = tiny_checkpoint("llama", "causal")
    model_skeleton = built(folder)
    state = load_file(folder / "model.safetensors")
    made: list[torch.nn.Module] = []

    def nothing() -> torch.nn.Module:
        made.append(torch.nn.Linear(1, 1))
        return torch.nn.Identity()

    before = "model.norm"
    inputs = sample_inputs(model_skeleton)
    with streamed(model_skeleton, lambda name: state[name].clone(), {before: nothing}) as model:
        first = logits(model, inputs)
        second = logits(model, inputs)
    assert len(made) == 2
    assert torch.equal(first, second)
    with streamed(model_skeleton, lambda name: state[name].clone(), {}) as model:
        assert not torch.equal(first, logits(model, inputs))


def test_sampled_inputs_are_alike_each_time_and_one_row_is_padded(tiny_checkpoint: Any) -> None:
    model_skeleton = built(tiny_checkpoint("gpt2", "causal"), pad_token_id=7)
    one, two = sample_inputs(model_skeleton), sample_inputs(model_skeleton)
    assert all(torch.equal(one[name], two[name]) for name in one)
    ids, mask = one["input_ids"], one["attention_mask"]
    assert ids.shape == mask.shape == (3, 24)
    assert mask.sum(dim=1).tolist() == [24, 24, 12]
    assert (ids == 7).sum(dim=1).tolist() == [0, 0, 12]
    assert int(ids.max()) < model_skeleton.config.vocab_size
    assert sample_inputs(model_skeleton, rows=2, length=6)["input_ids"].shape == (2, 6)


def test_an_encoder_decoder_reads_two_texts(tiny_checkpoint: Any) -> None:
    inputs = sample_inputs(built(tiny_checkpoint("t5", "seq2seq")))
    assert inputs["decoder_input_ids"].shape[1] == inputs["input_ids"].shape[1] // 2
