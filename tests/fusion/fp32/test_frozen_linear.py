"""One layer at a time: fp32 in and out over a 16-bit weight, after any change to the layer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peftlab.fusion.fp32 import frozen_linear
from peftlab.fusion.fp32.frozen_linear import PLAIN, WIDE, FrozenLinear, WideEmbedding

SIXTEEN = (torch.bfloat16, torch.float16)
SHAPES = [(1, 63, 37), (5, 3, 70), (0, 4, 8), (3, 0, 8)]


def layer(kind: type, k: int, n: int, dtype: torch.dtype, *, bias: bool = True) -> Any:
    """A frozen layer of K to N features, its class swapped."""
    torch.manual_seed(0)
    made: Any = nn.Linear(k, n, bias=bias) if kind is nn.Linear else Conv1D(n, k)
    if made.bias is not None:
        nn.init.normal_(made.bias)
    made = made.to(dtype).requires_grad_(False)
    made.__class__ = WIDE[kind]
    return made


def fp32_result(made: Any, x: Tensor) -> Tensor:
    weight = made.weight.float()
    bias = None if made.bias is None else made.bias.float()
    return F.linear(x, weight.T if isinstance(made, Conv1D) else weight, bias)


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one at every call of the kernels."""
    calls: list[int] = []
    real = frozen_linear.lora_linear

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(frozen_linear, "lora_linear", counted)
    return calls


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", SIXTEEN)
@pytest.mark.parametrize(("kind", "bias"), [(nn.Linear, True), (nn.Linear, False), (Conv1D, True)])
def test_a_frozen_layer_computes_in_fp32(
    kind: type, bias: bool, dtype: torch.dtype, shape: tuple[int, ...], kernel_calls: list[int]
) -> None:
    made = layer(kind, shape[-1], 29, dtype, bias=bias)
    x = torch.randn(shape, requires_grad=True)
    y = made(x)
    dy = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, x, dy)
    expected = fp32_result(made, x)
    (expected_dx,) = torch.autograd.grad(expected, x, dy)
    assert y.dtype is dx.dtype is torch.float32
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(dx, expected_dx)
    assert kernel_calls == [1]
    assert isinstance(made, kind)
    assert PLAIN[type(made)] is kind


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
@pytest.mark.parametrize("trained", ["weight", "bias"])
def test_what_trains_in_16_bits_gets_its_gradient(
    kind: type, trained: str, kernel_calls: list[int]
) -> None:
    made = layer(kind, 37, 29, torch.bfloat16)
    parameter = getattr(made, trained).requires_grad_(True)
    x = torch.randn(2, 11, 37, requires_grad=True)
    y = made(x)
    dy = torch.randn_like(y)
    y.backward(dy)
    leaf = parameter.detach().float().requires_grad_(True)
    plain = copy.deepcopy(made).requires_grad_(False).float()
    setattr(plain, trained, nn.Parameter(leaf))
    plain(again := x.detach().requires_grad_(True)).backward(dy)
    assert parameter.grad is not None
    assert parameter.grad.dtype is torch.bfloat16
    torch.testing.assert_close(parameter.grad, getattr(plain, trained).grad.bfloat16())
    torch.testing.assert_close(x.grad, again.grad)
    assert len(kernel_calls) == (trained == "bias")


def test_without_gradients_a_trainable_weight_is_as_good_as_frozen(
    kernel_calls: list[int],
) -> None:
    made = layer(nn.Linear, 8, 4, torch.bfloat16).requires_grad_(True)
    x = torch.randn(3, 8)
    with torch.no_grad():
        torch.testing.assert_close(made(x), fp32_result(made, x))
    assert kernel_calls == [1]


@pytest.mark.parametrize("wide", ["weight", "bias"])
def test_one_of_both_may_have_become_fp32(wide: str, kernel_calls: list[int]) -> None:
    made = layer(nn.Linear, 8, 4, torch.bfloat16)
    parameter = getattr(made, wide)
    parameter.data = parameter.data.float()
    x = torch.randn(3, 8)
    torch.testing.assert_close(made(x), fp32_result(made, x))
    assert len(kernel_calls) == (wide == "bias")


def test_any_other_call_is_torchs_own(kernel_calls: list[int]) -> None:
    made = layer(nn.Linear, 8, 4, torch.bfloat16)
    plain = copy.deepcopy(made)
    plain.__class__ = nn.Linear
    x = torch.randn(3, 8)
    assert torch.equal(made(x.bfloat16()), plain(x.bfloat16()))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made(x), plain(x))
    with pytest.raises(RuntimeError, match="dtype"):
        made(x.half())
    made.float(), plain.float()
    assert torch.equal(made(x), plain(x))
    assert kernel_calls == []


def test_transforms_and_meta_go_without_the_kernels(kernel_calls: list[int]) -> None:
    made = layer(nn.Linear, 8, 4, torch.bfloat16)
    x, t = torch.randn(3, 8), torch.randn(3, 8)
    torch.testing.assert_close(torch.func.vmap(made)(x), fp32_result(made, x))
    _, tangent = torch.func.jvp(made, (x,), (t,))
    torch.testing.assert_close(tangent, t @ made.weight.float().T)
    shape = made.to("meta")(x.to("meta")).shape
    assert shape == (3, 4)
    assert kernel_calls == []


def test_a_kept_forward_still_works_after_the_class_is_swapped_back() -> None:
    for kind in (nn.Linear, Conv1D):
        made = layer(kind, 8, 4, torch.bfloat16)
        kept, x = made.forward, torch.randn(3, 8)
        made.__class__ = kind
        torch.testing.assert_close(kept(x), fp32_result(made, x))
        assert torch.equal(kept(x.bfloat16()), made(x.bfloat16()))


def test_it_compiles_without_breaks() -> None:
    made = layer(nn.Linear, 8, 4, torch.bfloat16)
    x = torch.randn(3, 8)
    compiled = torch.compile(made, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), fp32_result(made, x))


def table(dtype: torch.dtype, **settings: Any) -> Any:
    torch.manual_seed(0)
    made = nn.Embedding(10, 6, **settings).to(dtype)
    made.__class__ = WideEmbedding
    return made


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_an_embedding_widens_what_it_finds(dtype: torch.dtype) -> None:
    made = table(dtype, padding_idx=0).requires_grad_(False)
    ids = torch.tensor([[1, 0, 9], [3, 3, 2]])
    assert torch.equal(made(ids), made.weight[ids].float())
    assert made(ids).dtype is torch.float32
    assert made(ids[:0]).shape == (0, 3, 6)


def test_a_trained_embedding_adds_gradients_up_in_fp32() -> None:
    made = table(torch.bfloat16, padding_idx=0)
    ids = torch.tensor([1] * 1000 + [0, 2])
    made(ids).backward(torch.ones(1002, 6))
    # Added up in bf16 one by one, a thousand ones are 256.
    assert made.weight.grad is not None
    assert made.weight.grad[:4, 0].tolist() == [0.0, 1000.0, 1.0, 0.0]


@pytest.mark.parametrize("settings", [{"sparse": True}, {"max_norm": 1.0}])
def test_unusual_embeddings_stay_torchs_own_but_for_the_result(settings: dict[str, Any]) -> None:
    made = table(torch.bfloat16, **settings)
    plain = copy.deepcopy(made)
    plain.__class__ = nn.Embedding
    ids = torch.tensor([4, 4, 7])
    assert torch.equal(made(ids), plain(ids).float())
    assert torch.equal(made.weight, plain.weight)
    made(ids).sum().backward()
    plain(ids).sum().backward()
    assert made.weight.grad is not None
    assert plain.weight.grad is not None
    assert torch.equal(made.weight.grad.to_dense(), plain.weight.grad.to_dense())


def test_only_the_very_classes_are_in_the_table() -> None:
    assert set(PLAIN) == {FrozenLinear, frozen_linear.FrozenConv1D, WideEmbedding}
    assert all(issubclass(wide, plain) for plain, wide in WIDE.items())
