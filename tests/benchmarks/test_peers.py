"""Every peer computes the same function: none is faster by computing less."""

from __future__ import annotations

import pytest
import torch

from benchmarks.peers import PEERS, SCALING, Case, LayerStep, PlainAddmm, weights_of
from peftlab_kernels import reference

CASE = Case(rows=37, in_features=72, out_features=100, rank=3)
BOUND = {torch.bfloat16: 1e-2, torch.float32: 2e-6}
EAGER = [name for name in PEERS if name != "PEFT, compiled"]


@pytest.mark.parametrize("dtype", list(BOUND))
@pytest.mark.parametrize("name", EAGER)
def test_a_peer_computes_the_layer_and_its_gradients(name: str, dtype: torch.dtype) -> None:
    case = Case(37, 72, 100, 3, dtype=dtype)
    weights = weights_of(case)
    step = LayerStep(name, case, weights)
    x, dy = step._sets[0]
    if name == "frozen base":
        weights = weights._replace(lora_b=torch.zeros_like(weights.lora_b))
    wide = [tensor.detach().double() for tensor in (x, *weights)]
    truths = [
        reference.lora_linear(*wide, scaling=SCALING),
        *reference.lora_linear_backward(dy.double(), *wide, scaling=SCALING),
    ]
    found = [step.forward(), *step()]
    for got, truth in zip(found, truths, strict=name != "frozen base"):
        assert got.shape == truth.shape
        assert (got.double() - truth).norm() <= BOUND[dtype] * truth.norm()


def test_the_plain_function_masks_forward_and_backward_alike() -> None:
    torch.manual_seed(0)
    x = torch.randn(9, 20, dtype=torch.float64, requires_grad=True)
    a = torch.randn(4, 20, dtype=torch.float64, requires_grad=True)
    b = torch.randn(30, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(30, 20, dtype=torch.float64)

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        y: torch.Tensor = PlainAddmm.apply(tensors[0], weight, *tensors[1:], 0.3)
        return y

    assert not torch.allclose(run(x, a, b), PlainAddmm.apply(x, weight, a, b, 0.0))
    assert torch.autograd.gradcheck(run, (x, a, b))


def test_dropout_drops() -> None:
    for name in EAGER:
        if name != "frozen base":
            case = Case(37, 72, 100, 3, dropout=0.5)
            step = LayerStep(name, case, weights_of(case))
            assert not torch.equal(step.forward(), step.forward()), name


def test_inputs_rotate() -> None:
    step = LayerStep("frozen base", CASE, weights_of(CASE), sets=2)
    first, second, third = step()[0], step()[0], step()[0]
    assert torch.equal(first, third)
    assert not torch.equal(first, second)
