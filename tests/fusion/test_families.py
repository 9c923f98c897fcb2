"""Whole tiny models of four families with padded rows: fused equal to PEFT, all layers fused."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import cast_adapter_dtype

from peftlab.fusion import fuse

from .common import Outcome, adapted_tiny, assert_same, batch, model_outcome

FAMILIES = {"bert": 14, "gpt2": 8, "t5": 32, "llama": 14}
"""Linear layers that `all-linear` adapts."""


@pytest.mark.parametrize(("family", "layers"), FAMILIES.items())
def test_equal_to_peft(family: str, layers: int, calls: Any) -> None:
    model = adapted_tiny(family)
    inputs = batch(family)
    expected = model_outcome(model, inputs)
    report = fuse(model)
    assert (len(report.fused), report.not_fused) == (layers, ())
    result = model_outcome(model, inputs)
    assert calls.take() == layers
    assert_same(result, expected, 1e-11)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("cast_adapters", [True, False], ids=["fp32 adapters", "bf16 adapters"])
def test_bf16(family: str, attention: str, cast_adapters: bool, calls: Any) -> None:
    """As close to the float64 model as PEFT with 16-bit adapters is, whatever the adapters' dtype:
    h and g are rounded to the activations' dtype, where PEFT's default keeps fp32 copies."""
    model = adapted_tiny(family, torch.bfloat16, cast_adapters=False)
    model.set_attn_implementation(attention)
    inputs = batch(family)
    truth = model_outcome(copy.deepcopy(model).double(), inputs)
    of_peft = model_outcome(model, inputs)
    if cast_adapters:
        cast_adapter_dtype(model.base_model, "default")
    dtypes = {name: t.dtype for name, t in model_outcome(model, inputs).items()}
    fuse(model)
    fused = model_outcome(model, inputs)
    assert calls.take() == FAMILIES[family]
    assert {name: t.dtype for name, t in fused.items()} == dtypes
    assert (torch.float32 in dtypes.values()) >= cast_adapters
    for part in (["logits"], fused.keys() - {"logits", "loss"}):
        assert distance(fused, truth, part) <= 1.5 * distance(of_peft, truth, part)


def distance(result: Outcome, truth: Outcome, names: Iterable[str]) -> float:
    """The relative error of several tensors together."""
    error = sum((result[n].double() - truth[n]).square().sum().item() for n in names)
    return float((error / sum(truth[n].square().sum().item() for n in names)) ** 0.5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(family: str, reentrant: bool, calls: Any) -> None:
    model = adapted_tiny(family)
    inputs = batch(family)
    expected = model_outcome(model, inputs)
    fuse(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    result = model_outcome(model, inputs)
    assert calls.take() > FAMILIES[family], "blocks are computed again in backward"
    assert_same(result, expected, 1e-11)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_few_steps_of_training(family: str, calls: Any) -> None:
    """The curves stay together: an error in one gradient would part them."""
    curves = []
    for fused in (False, True):
        model = adapted_tiny(family)
        if fused:
            fuse(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.1)
        losses = []
        for _ in range(5):
            loss = model(**batch(family)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        curves.append(torch.stack(losses))
    assert calls.take() == 5 * FAMILIES[family]
    assert curves[0][-1] < curves[0][0]
    assert torch.allclose(curves[0], curves[1], rtol=1e-9)
