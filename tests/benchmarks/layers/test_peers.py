"""Every peer computes the same function: none is faster by computing less."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.layers.bare_layers import PlainAddmm
from benchmarks.layers.layer_case import SCALING, Case, weights_of
from benchmarks.layers.peers import INT8_PEERS, PEERS, step_of
from peftlab_kernels import autotune, reference
from peftlab_kernels.int8_format import int8_quantize

CASE = Case(rows=37, in_features=72, out_features=100, rank=3)
BOUND = {torch.bfloat16: 1e-2, torch.float32: 2e-6}
EAGER = [name for name in PEERS if name != "PEFT, compiled"]


@pytest.mark.parametrize("dtype", list(BOUND))
@pytest.mark.parametrize("name", EAGER)
def test_a_peer_computes_the_layer_and_its_gradients(name: str, dtype: torch.dtype) -> None:
    case = Case(37, 72, 100, 3, dtype=dtype)
    weights = weights_of(case)
    step = step_of(name, case, weights)
    x, dy = step.inputs[0]
    if name == "frozen base":
        weights = weights._replace(lora_b=torch.zeros_like(weights.lora_b))
    wide = [tensor.detach().double() for tensor in (x, *weights)]
    truths = [
        reference.lora_linear(*wide, scaling=SCALING),
        *reference.lora_linear_backward(dy.double(), *wide, scaling=SCALING),
    ]
    actual = [step.forward(), *step()]
    for got, truth in zip(actual, truths, strict=name != "frozen base"):
        assert got.shape == truth.shape
        assert (got.double() - truth).norm() <= BOUND[dtype] * truth.norm()


@pytest.mark.parametrize("dtype", list(BOUND))
@pytest.mark.parametrize("name", [name for name in INT8_PEERS if name != "integer products alone"])
def test_a_peer_over_8_bits_computes_the_layer_over_the_same_codes(
    name: str, dtype: torch.dtype
) -> None:
    """Only `ours, w8a8` rounds activations, to 8 bits or, where the engine wants it, to 7."""
    case = Case(37, 72, 100, 3, dtype=dtype)
    weights = weights_of(case)
    step = step_of(name, case, weights)
    x, dy = step.inputs[0]
    kept = (x, *int8_quantize(weights.weight), weights.lora_a, weights.lora_b)
    wide = [tensor.detach().double() for tensor in kept]
    truths = [
        reference.int8_lora_linear(*wide, scaling=SCALING, arithmetic="w8a16"),
        *reference.int8_lora_linear_backward(
            dy.double(), *wide, scaling=SCALING, arithmetic="w8a16"
        ),
    ]
    bound = 3e-2 if "w8a8" in name else BOUND[dtype]
    for got, truth in zip([step.forward(), *step()], truths, strict=True):
        assert got.dtype in {dtype, torch.float32}
        assert (got.double() - truth).norm() <= bound * truth.norm()


def test_the_plain_function_masks_forward_and_backward_alike() -> None:
    torch.manual_seed(0)
    x = torch.randn(9, 20, dtype=torch.float64, requires_grad=True)
    a = torch.randn(4, 20, dtype=torch.float64, requires_grad=True)
    b = torch.randn(30, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(30, 20, dtype=torch.float64)

    def run(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, p: float = 0.3) -> torch.Tensor:
        torch.manual_seed(1)
        y: torch.Tensor = PlainAddmm.apply(x, weight, a, b, p)  # type: ignore[no-untyped-call]
        return y

    assert not torch.allclose(run(x, a, b), run(x, a, b, 0.0))
    assert torch.autograd.gradcheck(run, (x, a, b))


def test_dropout_drops() -> None:
    for name in (*EAGER, *INT8_PEERS):
        if name not in {"frozen base", "integer products alone"}:
            case = Case(37, 72, 100, 3, dropout=0.5)
            step = step_of(name, case, weights_of(case))
            assert not torch.equal(step.forward(), step.forward()), name


def test_inputs_rotate() -> None:
    step = step_of("frozen base", CASE, weights_of(CASE), sets=2)
    first, second, third = step()[0], step()[0], step()[0]
    assert torch.equal(first, third)
    assert not torch.equal(first, second)


@pytest.fixture
def native() -> Iterator[None]:
    """Ours in bf16 throughout, as on a processor that multiplies it: counts of one path."""
    with autotune.replay({"bfloat16 x @ W.T": "native", "bfloat16 dy @ W": "native"}):
        yield


@pytest.mark.poison_empty(False)  # NaN in fresh memory would count as an operator
@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("suffix", ["", ", 16-bit adapters"])
def test_a_layer_calls_no_more_than_pefts_and_moves_and_keeps_less(suffix: str) -> None:
    case = Case(rows=48, in_features=256, out_features=192, rank=4)
    ours, peft = (
        step_of(name + suffix, case, weights_of(case)).counts() for name in ("ours", "PEFT")
    )
    assert ours.operators <= peft.operators
    assert ours.flops <= peft.flops
    assert ours.bytes_moved < peft.bytes_moved
    assert ours.peak_live_bytes < peft.peak_live_bytes
    assert ours.saved_bytes == 2 * case.rows * (case.in_features + case.rank)


@pytest.mark.poison_empty(False)  # NaN in fresh memory would count as an operator
@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(("name", "of_x", "of_y"), [
    ("ours", 8, 8), ("plain addmm_", 8, 8), ("PEFT, 16-bit adapters", 12, 20),
    ("PEFT, autocast", 36, 20), ("PEFT", 30, 56),
])  # fmt: skip
def test_a_layer_moves_what_the_readme_says(name: str, of_x: int, of_y: int) -> None:
    """Bytes beside the base product, and beside what is as thin as the rank."""
    case = Case(rows=256, in_features=512, out_features=384, rank=1)
    weights = weights_of(case)
    base, actual = (
        step_of(row, case, weights).counts().bytes_moved for row in ("frozen base", name)
    )
    expected = case.rows * (of_x * case.in_features + of_y * case.out_features)
    assert actual - base == pytest.approx(expected, rel=0.04)
