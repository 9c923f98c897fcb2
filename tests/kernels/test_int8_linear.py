"""The frozen 8-bit layer: bitsandbytes' state dict, safe from casts, copied and pickled whole."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from peftlab_kernels.int8_format import int8_dequantize, int8_quantize
from peftlab_kernels.int8_linear import Int8Linear


def made(rows: int = 24, columns: int = 37, dtype: torch.dtype = torch.float32) -> Int8Linear:
    torch.manual_seed(0)
    return Int8Linear.from_weight(torch.randn(rows, columns), torch.randn(rows).to(dtype))


def dequantised(layer: Int8Linear) -> torch.Tensor:
    return int8_dequantize(layer.weight, layer.SCB, torch.empty(layer.weight.shape))


def assert_same(left: Int8Linear, right: Int8Linear) -> None:
    for name, value in left.state_dict().items():
        other = right.state_dict()[name]
        assert torch.equal(value, other), name
        assert value.dtype is other.dtype, name


def test_it_is_made_of_the_quantisers_bits() -> None:
    weight = torch.randn(24, 37)
    codes, scales = int8_quantize(weight)
    layer = Int8Linear.from_weight(weight)
    assert torch.equal(layer.weight, codes)
    assert torch.equal(layer.SCB, scales)
    assert layer.bias is None
    assert not layer.weight.requires_grad
    assert "in_features=37, out_features=24, bias=False, bits=8" in repr(layer)


@pytest.mark.parametrize("shape", [(1, 63, 37), (0, 37), (37,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_computes_the_dequantised_layer(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    layer = made(dtype=dtype)
    weight, bias = dequantised(layer), layer.bias.float()
    x = torch.randn(shape).to(dtype).requires_grad_()
    y = layer(x)
    assert y.dtype is dtype
    expected = x.detach().float().requires_grad_()
    plain = nn.functional.linear(expected, weight, bias)
    dy = torch.randn_like(plain)
    y.backward(dy.to(dtype))
    plain.backward(dy)
    rtol, atol = (1e-5, 1e-5) if dtype is torch.float32 else (2e-2, 0.2)
    assert x.grad is not None
    assert expected.grad is not None
    torch.testing.assert_close(y.float(), plain, rtol=rtol, atol=atol)
    torch.testing.assert_close(x.grad.float(), expected.grad, rtol=rtol, atol=atol)


def test_the_weight_is_not_kept_dequantised_for_backward() -> None:
    layer = made(256, 128)
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        layer(torch.randn(3, 128, requires_grad=True))
    assert all(t.dtype is torch.int8 for t in kept if t.numel() >= layer.weight.numel())


@pytest.mark.parametrize(
    "cast",
    [
        lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.double(),
        lambda m: m.float(), lambda m: m.bfloat16(), lambda m: m.type(torch.float16),
        lambda m: nn.Sequential(m).half()[0],
    ],
)  # fmt: skip
def test_casts_stop_at_codes_and_scales(cast: Any) -> None:
    layer = made(dtype=torch.bfloat16)
    layer.SCB.mul_(1 + 2**-20)  # what no 16-bit float holds
    before = copy.deepcopy(layer)
    cast(layer)
    assert layer.weight.dtype is torch.int8
    assert layer.SCB.dtype is torch.float32
    assert layer.weight_format.dtype is torch.uint8
    assert torch.equal(layer.weight, before.weight)
    assert torch.equal(layer.SCB, before.SCB)
    assert cast(nn.Linear(1, 1)).bias.dtype is layer.bias.dtype


def test_moving_to_meta_and_back_from_a_state_dict() -> None:
    layer = made()
    empty = Int8Linear(37, 24, device="meta")
    assert all(t.is_meta for t in (*empty.parameters(), *empty.buffers()))
    empty.load_state_dict(layer.state_dict(), assign=True)
    assert_same(empty, layer)
    assert not empty.weight.requires_grad
    assert copy.deepcopy(layer).to("meta").weight.is_meta
    filled = Int8Linear(37, 24, device="meta").to_empty(device="cpu")
    filled.load_state_dict(layer.state_dict())
    assert_same(filled, layer)


def test_it_is_copied_and_pickled() -> None:
    layer = made(dtype=torch.bfloat16)
    assert_same(copy.deepcopy(layer), layer)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    assert_same(torch.load(buffer, weights_only=False), layer)


def test_a_foreign_state_is_refused() -> None:
    layer = made()
    state = layer.state_dict()
    assert list(state) == ["weight", "bias", "SCB", "weight_format"]
    before = copy.deepcopy(layer)
    with pytest.raises(RuntimeError, match=r"weight is torch\.float32, and this layer holds int8"):
        layer.load_state_dict(nn.Linear(37, 24).state_dict())
    with pytest.raises(RuntimeError, match=r"SCB is torch\.float16"):
        layer.load_state_dict(state | {"SCB": state["SCB"].half()})
    with pytest.raises(RuntimeError, match="weight_format is 2"):
        layer.load_state_dict(state | {"weight_format": torch.tensor(2, dtype=torch.uint8)})
    assert_same(layer, before)
    del state["weight_format"]
    layer.load_state_dict(state)


def test_bitsandbytes_reads_it_and_is_read() -> None:
    bnb = pytest.importorskip("bitsandbytes")
    torch.manual_seed(1)
    plain = nn.Linear(64, 48)
    theirs = bnb.nn.Linear8bitLt(64, 48, has_fp16_weights=False)
    theirs.load_state_dict(plain.state_dict())
    theirs = theirs.to("cpu")
    ours = Int8Linear.from_weight(plain.weight, plain.bias)
    written, wanted = ours.state_dict(), theirs.state_dict()
    assert written.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(written[name], value), name
        assert written[name].dtype is value.dtype, name
    read = Int8Linear(64, 48)
    read.load_state_dict(theirs.state_dict())
    assert_same(read, ours)
    back = bnb.nn.Linear8bitLt(64, 48, has_fp16_weights=False)
    back.load_state_dict(nn.Linear(64, 48).state_dict())
    back = back.to("cpu")
    back.load_state_dict(ours.state_dict())
    assert torch.equal(back.weight, ours.weight)
    assert torch.equal(back.weight.SCB, ours.SCB)


def adapted() -> tuple[Any, Int8Linear]:
    layer = made(32, 32)
    model: Any = get_peft_model(
        nn.Sequential(layer), LoraConfig(target_modules=["0"], init_lora_weights=False)
    )
    return model, layer


def test_peft_adapts_it_in_floats_and_trains() -> None:
    model, layer = adapted()
    before = copy.deepcopy(layer)
    lora = [p for n, p in model.named_parameters() if "lora_" in n]
    assert lora
    assert all(p.dtype is torch.float32 and p.requires_grad for p in lora)
    x = torch.randn(5, 32)
    optimiser = torch.optim.SGD(lora, lr=0.1)
    losses = []
    for _ in range(5):
        optimiser.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert_same(layer, before)
    with model.disable_adapter():
        assert torch.equal(model(x), layer(x))
    delta = model.base_model.model[0].get_delta_weight("default")
    torch.testing.assert_close(model(x), layer(x) + x @ delta.T, rtol=1e-4, atol=1e-4)
