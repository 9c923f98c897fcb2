"""When the loss goes through Liger, and in which arithmetic; a stand-in takes its place."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from peftlab.tasks.language.loss import chunked_loss
from peftlab.tasks.language.loss.chunked_loss import CausalLoss, plain_loss_sum
from peftlab.tasks.language.loss.hidden_states import select
from tests.tasks.language.loss.test_chunked_loss import MODELS, batch_of, build, gradients

BARE = ("gpt2 tied", "llama untied", "llama tied", "lora", "lora on gpt2")


class Calls(list[tuple[torch.dtype, torch.dtype, bool]]):
    """Of each call the dtypes of weight and hidden states, and whether autocast was on."""

    error = 0.0


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Usable here, as it would be on CUDA; computes plainly, in the dtypes that it is given."""
    calls = Calls()

    class Loss(nn.Module):
        def __init__(self, reduction: str, accum_dtype: torch.dtype) -> None:
            super().__init__()
            assert (reduction, accum_dtype) == ("sum", torch.float32)

        def forward(self, weight: Any, hidden: Any, labels: Any) -> torch.Tensor:
            calls.append((weight.dtype, hidden.dtype, torch.is_autocast_enabled("cpu")))
            logits = hidden @ weight.t()
            return F.cross_entropy(logits.float(), labels, reduction="sum") * (1 + calls.error)

    module: Any = ModuleType("liger_kernel.transformers")
    module.LigerFusedLinearCrossEntropyLoss = Loss
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", module)
    monkeypatch.setattr(chunked_loss, "_liger_runs_on", lambda _: True)
    return calls


@pytest.mark.usefixtures("liger")
@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_a_bare_head_is_enough(kind: str, reduced: bool) -> None:
    model = MODELS[kind]()
    with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
        chosen = select(model, batch_of())
        assert chunked_loss._kernel(chosen) == ("liger" if kind in BARE else "blocks")


@pytest.mark.parametrize("kind", ["llama tied", "lora"])
@pytest.mark.parametrize("reduced", [False, True])
def test_runs_in_the_models_arithmetic(kind: str, reduced: bool, liger: Calls) -> None:
    model, batch = MODELS[kind](), batch_of()
    with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
        got = CausalLoss("chunked").loss_sum(model, batch)
        plain = plain_loss_sum(model, batch)
    dtype = torch.bfloat16 if reduced else torch.float32
    assert liger == [(dtype, dtype, False)] * 2  # the proof, and the loss
    torch.testing.assert_close(got, plain, rtol=2e-3 if reduced else 1e-5, atol=0)
    actual, expected = gradients(model, got), gradients(model, plain)
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        off = float((actual[name] - gradient).norm() / gradient.norm().clamp_min(1e-3))
        assert off < (0.02 if reduced else 1e-5), name


def test_is_not_used_where_the_check_fails(liger: Calls) -> None:
    liger.error = 0.01
    model, batch = MODELS["llama untied"](), batch_of()
    got = CausalLoss("chunked").loss_sum(model, batch)
    assert len(liger) == 1
    torch.testing.assert_close(got, plain_loss_sum(model, batch), rtol=1e-5, atol=0)


@pytest.mark.usefixtures("liger")
def test_a_head_that_trains_alone_gets_its_gradient_otherwise() -> None:
    model = build("llama", tie_word_embeddings=False).requires_grad_(False)
    model.lm_head.requires_grad_(True)
    chosen = select(model, batch_of())
    assert chunked_loss._kernel(chosen) != "liger"
    loss = CausalLoss("chunked").loss_sum(model, batch_of())
    assert gradients(model, loss)["lm_head.weight"].any()
