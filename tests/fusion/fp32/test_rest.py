"""What is saved and loaded in the dtype it rested in, while it is fp32 in memory."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from peftlab.fusion.fp32.widen import narrow, widen
from tests.fusion.sixteen_bits import SIXTEEN, adapted, assert_same_state, inputs, state_of, tiny

FAMILIES = ("bert", "gpt2", "t5", "llama", "bart")


def copied(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(result: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert result.keys() == expected.keys()
    for name, want in expected.items():
        assert result[name].dtype is want.dtype, name
        assert torch.equal(result[name], want), name


def storages(state: dict[str, Tensor]) -> int:
    return len({tensor.data_ptr() for tensor in state.values()})


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("dtype", SIXTEEN)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_state_dict_is_the_16_bit_models(family: str, dtype: torch.dtype, lora: bool) -> None:
    model = adapted(tiny(family, dtype)) if lora else tiny(family, dtype)
    expected, count = copied(model), storages(model.state_dict())
    widen(model)
    result = model.state_dict()
    assert_equal(result, expected)
    assert storages(result) == count, "tied tensors are one tensor in the state dict"
    assert_equal(model.state_dict(), expected)
    narrow(model)
    assert_equal(model.state_dict(), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_save_pretrained_writes_the_checkpoint_again(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    model.save_pretrained(tmp_path / "before")
    widen(model)
    model.save_pretrained(tmp_path / "after")
    before = load_file(tmp_path / "before" / "model.safetensors")
    assert_equal(load_file(tmp_path / "after" / "model.safetensors"), before)
    assert {tensor.dtype for tensor in before.values()} == {torch.bfloat16}
    again = type(model).from_pretrained(tmp_path / "after", dtype=torch.bfloat16).eval()
    narrow(model)
    assert_equal(again.state_dict(), model.state_dict())


def test_an_adapter_is_saved_as_ever(tmp_path: Path) -> None:
    model = adapted(tiny("bert"), target_modules=["query"], modules_to_save=["classifier"])
    model.save_pretrained(tmp_path / "before")
    widen(model)
    model.save_pretrained(tmp_path / "after")
    name = "adapter_model.safetensors"
    assert_equal(load_file(tmp_path / "after" / name), load_file(tmp_path / "before" / name))


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_16_bit_state_dict_loads(family: str, assign: bool) -> None:
    model, other = tiny(family), tiny(family)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.7)
    wanted = copied(other)
    expected = other.float()(**inputs(family)).logits
    widen(model)
    model.load_state_dict(wanted, assign=assign)
    assert {tensor.dtype for tensor in wanted.values()} == {torch.bfloat16}
    torch.testing.assert_close(model(**inputs(family)).logits, expected, atol=1e-5, rtol=1e-5)
    assert_equal(model.state_dict(), wanted)


def test_an_fp32_state_dict_is_rounded_as_without_widening() -> None:
    model, plain = tiny("llama"), tiny("llama")
    state = {k: torch.randn_like(t.float()) for k, t in model.state_dict().items()}
    widen(model)
    model.load_state_dict(state)
    plain.load_state_dict(state)
    assert torch.equal(model.model.norm.weight, plain.model.norm.weight.float())
    assert_equal(model.state_dict(), plain.state_dict())
    narrow(model)
    assert_same_state(state_of(model), state_of(plain))


def test_what_trains_is_saved_and_loaded_as_it_is() -> None:
    model = tiny("llama")
    widen(model)
    norm = model.model.norm.weight.requires_grad_(True)
    with torch.no_grad():
        norm.add_(2**-20)
    state = model.state_dict()
    assert state["model.norm.weight"].dtype is torch.float32
    assert torch.equal(state["model.norm.weight"], norm)
    assert state["model.layers.0.input_layernorm.weight"].dtype is torch.bfloat16
    other = tiny("llama")
    widen(other)
    other.model.norm.weight.requires_grad_(True)
    other.load_state_dict(state)
    assert torch.equal(other.model.norm.weight, norm)


def test_keep_vars_gives_the_models_own_parameters() -> None:
    model = tiny("bart")
    widen(model)
    own = dict(model.named_parameters(remove_duplicate=False))
    kept = model.state_dict(keep_vars=True)
    assert all(kept[name] is parameter for name, parameter in own.items())


def test_the_callers_own_dict_is_filled_too() -> None:
    model = tiny("bart")
    expected = copied(model)
    widen(model)
    destination: dict[str, Tensor] = {}
    model.state_dict(destination=destination)
    assert_equal(destination, expected)
    assert_equal(OrderedDict(destination), expected)
