"""Fused against PEFT on the model's device: on a CPU, and with `-m gpu` on a CUDA device too."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from torch.utils.checkpoint import checkpoint

from peftlab.fusion import fuse, unfuse

from .common import K, adapted, adapted_tiny, assert_same, batch, model_outcome, outcome, some_input

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    return name


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_a_layer(kind: str, dtype: torch.dtype, autocast: bool, device: str, calls: Any) -> None:
    model = adapted(kind, dtype, lora_bias=True, bias="lora_only").to(device)
    x = some_input((3, 17, K), dtype).to(device)
    context: Any = torch.autocast(device, torch.bfloat16) if autocast else contextlib.nullcontext()
    with context:
        expected = outcome(model, x)
        fuse(model)
        result = outcome(model, x)
    assert calls.take() == 1
    # TF32 and how a product is split are torch's on a CUDA device.
    exact = dtype is torch.float32 and not autocast
    assert_same(result, expected, (2e-6 if device == "cpu" else 2e-3) if exact else 2e-2)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_dropout_draws_the_same_mask(reentrant: bool, device: str, calls: Any) -> None:
    model = adapted(dtype=torch.float32, lora_dropout=0.3).train().to(device)
    fuse(model)
    drawn = []
    for call in (model, lambda x: checkpoint(model, x, use_reentrant=reentrant)):
        torch.manual_seed(7)
        x = some_input((40, K), torch.float32).to(device).requires_grad_()
        call(x).square().sum().backward()
        drawn.append(x.grad)
    assert calls.take() == 3
    assert torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model(family: str, device: str, calls: Any) -> None:
    model = adapted_tiny(family, torch.float32).to(device)
    inputs = {name: t.to(device) for name, t in batch(family).items()}
    expected = model_outcome(model, inputs)
    report = fuse(model)
    assert report.not_fused == ()
    result = model_outcome(model, inputs)
    assert calls.take() == len(report.fused)
    assert_same(result, expected, 1e-4 if device == "cpu" else 1e-2)


def test_offloaded_weights(device: str, calls: Any) -> None:
    model = adapted_tiny("llama", torch.float32)
    inputs = {name: t.to(device) for name, t in batch("llama").items()}
    fuse(model)
    cpu_offload(model, execution_device=torch.device(device))
    with torch.no_grad():
        result = model(**inputs).logits
        assert calls.take() == 0
        unfuse(model)
        assert torch.equal(result, model(**inputs).logits)
