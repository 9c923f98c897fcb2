"""`torch.compile` of fused models: one graph, dropout included, and guards that hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peftlab.fusion import fuse
from tests.inductor import needs_inductor

from .common import Outcome, adapted, adapted_tiny, assert_same, batch, model_outcome, outcome


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


def names_as_before(result: Outcome) -> Outcome:
    return {name.removeprefix("_orig_mod."): t for name, t in result.items()}


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_a_layer_is_one_graph(kind: str) -> None:
    model = adapted(kind, lora_bias=True)
    expected = outcome(model)
    fuse(model)
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same(names_as_before(outcome(compiled)), expected)


@pytest.mark.slow
@needs_inductor
def test_inductor() -> None:
    model = adapted("linear", torch.float32)
    expected = outcome(model)
    fuse(model)
    compiled: Any = torch.compile(model, fullgraph=True)
    assert_same(names_as_before(outcome(compiled)), expected, 2e-6)


def test_dropout_in_a_graph_follows_the_generator() -> None:
    model = adapted(lora_dropout=0.4).train()
    fuse(model)
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(outcome(compiled))
    assert_same(drawn[0], drawn[1], 0)
    assert not torch.equal(drawn[0]["y"], drawn[2]["y"])
    model.eval()
    assert_same({"y": outcome(compiled)["y"]}, {"y": outcome(model)["y"]})


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_model_is_one_graph(family: str) -> None:
    model = adapted_tiny(family)
    inputs = batch(family)
    expected = model_outcome(model, inputs)
    fuse(model)
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same(names_as_before(model_outcome(compiled, inputs)), expected, 1e-11)


def test_what_changes_after_compiling_is_seen() -> None:
    model = adapted()
    fuse(model)
    model.add_adapter("other", model.peft_config["default"])
    model.double()
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")

    def agree() -> torch.Tensor:
        result, expected = outcome(compiled), outcome(model)
        assert_same(names_as_before(result), expected)
        return result["y"]

    seen = [agree()]
    model.set_adapter("other")
    seen.append(agree())
    with model.disable_adapter():
        seen.append(agree())
    model.base_model.set_adapter(["default", "other"])
    seen.append(agree())
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 12):  # 2.11 has no such guard
        model.base_model.model.layer.base_layer.weight.requires_grad_()
        agree()
    assert len({float(y.sum()) for y in seen}) == len(seen)
