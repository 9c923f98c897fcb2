"""`lora_linear` on the torch path against float64: values, every gradient, every layout."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from peftlab_kernels import reference
from peftlab_kernels.eager.backend import Arithmetic, EagerKernels
from peftlab_kernels.eager.dropout_mask import draw_rows, empty_mask, scale_of_kept
from peftlab_kernels.functional import lora_linear
from peftlab_kernels.protocol import Needs
from tests.kernels.errors import BOUND, error

SHAPES = [(1, 136, 72, 1), (37, 72, 100, 3), (130, 40, 168, 16), (63, 37, 5, 5), (0, 8, 12, 2),
          (3, 0, 5, 2), (3, 5, 0, 2), (300, 2100, 33, 7)]  # fmt: skip
"""M, K, N, R; the last spans several row blocks."""


@dataclass
class Case:
    """One call's tensors, random and on leaves, and what float64 makes of them."""

    shape: tuple[int, int, int, int]
    dtype: torch.dtype = torch.float32
    weight_dtype: torch.dtype | None = None
    adapter_dtype: torch.dtype | None = None
    dropout: float = 0.0
    bias: bool = True
    transposed: bool = False
    scaling: float = 1.7
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows, in_features, out_features, rank = self.shape
        draw = torch.Generator().manual_seed(sum(self.shape))

        def random(*shape: int, dtype: torch.dtype | None = None) -> Tensor:
            values = torch.randn(shape, generator=draw, dtype=torch.float64) / 3
            return values.to(dtype or self.dtype)

        weight = random(out_features, in_features, dtype=self.weight_dtype)
        self.tensors = {
            "x": random(rows, in_features).requires_grad_(),
            "weight": weight.T.contiguous() if self.transposed else weight,
            "lora_a": random(rank, in_features, dtype=self.adapter_dtype).requires_grad_(),
            "lora_b": random(out_features, rank, dtype=self.adapter_dtype).requires_grad_(),
        }
        if self.bias:
            self.tensors["bias"] = random(out_features).requires_grad_()

    def run(self, seed: int = 3) -> tuple[Tensor, dict[str, Tensor]]:
        """The output and the gradients of all that requires one."""
        torch.manual_seed(seed)
        y = lora_linear(
            **self.tensors,
            scaling=self.scaling, dropout=self.dropout, transposed=self.transposed,
        )  # fmt: skip
        leaves = {name: t for name, t in self.tensors.items() if t.requires_grad}
        gradients = torch.autograd.grad(y, list(leaves.values()), self.dy(y))
        return y.detach(), dict(zip(leaves, gradients, strict=True))

    def dy(self, y: Tensor) -> Tensor:
        draw = torch.Generator().manual_seed(9)
        return torch.randn(y.shape, generator=draw, dtype=torch.float64).to(y.dtype)

    def truth(self, seed: int = 3) -> tuple[Tensor, dict[str, Tensor]]:
        """The same in float64, by the reference, with the mask that the seed draws."""
        return self._in_float64(seed, 1)

    def uncancelled(self, seed: int = 3) -> tuple[Tensor, dict[str, Tensor]]:
        """How large the truth is where its terms do not cancel: the root of their squares' sum.

        Rounding is in proportion to this, whatever becomes of a result that is one number.
        """
        y, gradients = self._in_float64(seed, 2)
        return y.sqrt(), {name: gradient.sqrt() for name, gradient in gradients.items()}

    def _in_float64(self, seed: int, power: int) -> tuple[Tensor, dict[str, Tensor]]:
        """By the reference, of every number's power: each of its terms then is that power too."""
        wide = {name: t.detach().double() ** power for name, t in self.tensors.items()}
        scaling = self.scaling**power
        keep = None
        if self.dropout:
            torch.manual_seed(seed)
            x = self.tensors["x"]
            keep = torch.full(x.shape, torch.nan, dtype=torch.float64)
            for rows, kept in draw_rows(empty_mask(x), x.shape[1], self.dropout):
                keep[rows] = kept.double() * scale_of_kept(self.dropout) ** power
        weight = wide["weight"].T if self.transposed else wide["weight"]
        arguments = (wide["x"], weight, wide["lora_a"], wide["lora_b"])
        y = reference.lora_linear(*arguments, scaling=scaling, bias=wide.get("bias"), keep=keep)
        dy = self.dy(y).to(self.dtype).double() ** power
        gradients = reference.lora_linear_backward(
            dy, *arguments, scaling=scaling, keep=keep
        )._asdict()
        if self.bias:
            gradients["bias"] = dy.sum(0)
        return y, gradients


def check(case: Case) -> None:
    y, gradients = case.run()
    (y_truth, truths), (y_size, sizes) = case.truth(), case.uncancelled()
    bound = BOUND[case.dtype]
    if case.adapter_dtype is not None:
        bound = max(bound, BOUND[case.adapter_dtype])
    assert y.dtype is case.dtype
    assert error(y, y_truth, y_size) < bound
    assert gradients.keys() == truths.keys()
    for name, truth in truths.items():
        assert error(gradients[name], truth, sizes[name]) < bound, name
        assert gradients[name].dtype is case.tensors[name].dtype
        assert gradients[name].is_contiguous()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_and_every_gradient(
    shape: tuple[int, int, int, int], dropout: float, dtype: torch.dtype
) -> None:
    check(Case(shape, dtype, dropout=dropout))


@pytest.mark.parametrize("shape", [(37, 72, 100, 3), (63, 37, 5, 5), (300, 2100, 33, 7)])
@pytest.mark.parametrize(
    ("dtype", "weight", "adapter"),
    [
        (torch.bfloat16, None, torch.float32),
        (torch.float16, None, torch.float32),
        (torch.float32, torch.bfloat16, None),
        (torch.float32, torch.float16, None),
        (torch.float32, None, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("block", [200, 1 << 20])
def test_mixed_dtypes_and_layouts(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    weight: torch.dtype | None,
    adapter: torch.dtype | None,
    transposed: bool,
    block: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """fp32 x over a 16-bit weight is as exact as fp32: x is not rounded, in blocks or at once."""
    monkeypatch.setattr("peftlab_kernels.row_blocks.BLOCK_ELEMENTS", block)
    check(Case(shape, dtype, weight, adapter, 0.1, bias=False, transposed=transposed))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("transposed", [False, True])
def test_sixteen_bit_activations_in_fp32_arithmetic(
    dtype: torch.dtype, dropout: float, transposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arithmetic of a CPU without bf16 units, over several chunks of rows."""
    monkeypatch.setattr("peftlab_kernels.eager.backend.WIDENED_ROWS", 16)
    monkeypatch.setattr(
        "peftlab_kernels.backends.eager_kernels", lambda x: EagerKernels("fp32", "fp32")
    )
    check(Case((37, 72, 100, 3), dtype, None, torch.float32, dropout, transposed=transposed))
    check(Case((0, 8, 12, 2), dtype, None, torch.float32, dropout, transposed=transposed))


@given(
    rows=st.integers(0, 40), in_features=st.integers(1, 70), out_features=st.integers(1, 70),
    rank=st.integers(1, 40), dropout=st.sampled_from([0.0, 0.1, 0.9]), bias=st.booleans(),
    transposed=st.booleans(), dtype=st.sampled_from([torch.float64, torch.float32]),
)  # fmt: skip
def test_any_shape(
    rows: int, in_features: int, out_features: int, rank: int, dropout: float, bias: bool,
    transposed: bool, dtype: torch.dtype,
) -> None:  # fmt: skip
    shape = (rows, in_features, out_features, rank)
    check(Case(shape, dtype, dropout=dropout, bias=bias, transposed=transposed))


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("transposed", [False, True])
def test_gradcheck(dropout: float, transposed: bool) -> None:
    case = Case((5, 7, 6, 3), torch.float64, dropout=dropout, transposed=transposed)

    def run(x: Tensor, lora_a: Tensor, lora_b: Tensor, bias: Tensor) -> Tensor:
        torch.manual_seed(1)
        return lora_linear(
            x, case.tensors["weight"], lora_a, lora_b,
            scaling=0.7, bias=bias, dropout=dropout, transposed=transposed,
        )  # fmt: skip

    leaves = [case.tensors[name] for name in ("x", "lora_a", "lora_b", "bias")]
    assert torch.autograd.gradcheck(run, leaves)


def test_without_an_adapter_it_is_the_frozen_linear() -> None:
    case = Case((37, 72, 100, 3))
    x, weight, bias = (case.tensors[name] for name in ("x", "weight", "bias"))
    y = lora_linear(x, weight, bias=bias)
    torch.testing.assert_close(y, torch.nn.functional.linear(x, weight, bias))
    (dx,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(dx, torch.ones_like(y) @ weight)


def test_lora_bias_and_a_scaling_that_trains() -> None:
    case = Case((37, 72, 100, 3), torch.float64)
    scaling = torch.tensor([0.8], dtype=torch.float64, requires_grad=True)
    lora_bias = torch.randn(100, dtype=torch.float64, requires_grad=True)
    y = lora_linear(**case.tensors, scaling=scaling, lora_bias=lora_bias)
    t = case.tensors
    plain = (
        t["x"] @ t["weight"].T + t["bias"]
        + scaling * ((t["x"] @ t["lora_a"].T) @ t["lora_b"].T + lora_bias)
    )  # fmt: skip
    torch.testing.assert_close(y, plain)
    leaves = [*(v for v in t.values() if v.requires_grad), scaling, lora_bias]
    dy = torch.randn_like(y)
    for ours, theirs in zip(
        torch.autograd.grad(y, leaves, dy), torch.autograd.grad(plain, leaves, dy), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("needed", ["x", "lora_a", "lora_b", "bias"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_one_gradient_alone(needed: str, dropout: float) -> None:
    """Each gradient is right where it is the only one, and nothing is saved for the others."""
    case = Case((37, 72, 100, 3), torch.float64, dropout=dropout)
    for name, tensor in case.tensors.items():
        tensor.requires_grad_(name == needed)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        _, gradients = case.run()
    assert gradients.keys() == {needed}
    assert error(gradients[needed], case.truth()[1][needed]) < 1e-12
    x_saved = any(t.shape == case.tensors["x"].shape for t in saved)
    assert x_saved == (needed == "lora_a")
    assert any(t.shape == (37, 3) for t in saved) == (needed == "lora_b")
    mask_saved = any(t.dtype is torch.uint8 for t in saved)
    assert mask_saved == (bool(dropout) and needed in {"x", "lora_a"})


def test_gradients_over_many_blocks_are_summed_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 16 bits a sum stops growing once its parts fall below its rounding."""
    monkeypatch.setattr("peftlab_kernels.eager.dropout_mask.cached_elements", lambda: 1)
    case = Case((3000, 8, 12, 2), torch.bfloat16, dropout=0.1)
    for tensor in case.tensors.values():
        tensor.data.abs_()
    monkeypatch.setattr(Case, "dy", lambda self, y: torch.ones_like(y))
    check(case)


def test_leading_dimensions_and_strides() -> None:
    case = Case((24, 10, 6, 2))
    t = {name: tensor.detach() for name, tensor in case.tensors.items()}
    flat = lora_linear(**t)
    x = t["x"].view(2, 3, 4, 10)
    assert torch.equal(lora_linear(**t | {"x": x}), flat.view(2, 3, 4, 6))
    swapped = x.transpose(0, 2)
    assert not swapped.is_contiguous()
    # A BLAS may sum the rows of its last, narrower tile in another order: no bit-equality here.
    actual = lora_linear(**t | {"x": swapped})
    torch.testing.assert_close(actual, flat.view(2, 3, 4, 6).transpose(0, 2))
    torch.testing.assert_close(lora_linear(**t | {"x": x[0, 0, 0]}), flat[0])


def test_expanded_output_gradients() -> None:
    """`sum().backward()` hands over a gradient without strides of its own."""
    case = Case((37, 72, 100, 3), torch.float64)
    y = lora_linear(**case.tensors)
    leaves = [case.tensors["lora_a"], case.tensors["lora_b"], case.tensors["x"]]
    ones = torch.ones_like(y)
    for ours, dense in zip(
        torch.autograd.grad(y.sum(), leaves, retain_graph=True),
        torch.autograd.grad(y, leaves, ones),
        strict=True,
    ):
        torch.testing.assert_close(ours, dense)


@pytest.mark.parametrize("block", [200, 1 << 20])
@pytest.mark.parametrize("arithmetic", ["native", "fp32"])
def test_autocast_computes_in_its_dtype_and_saves_the_weight_itself(
    block: int, arithmetic: Arithmetic, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = EagerKernels(arithmetic, arithmetic)
    monkeypatch.setattr("peftlab_kernels.backends.eager_kernels", lambda x: kernels)
    monkeypatch.setattr("peftlab_kernels.row_blocks.BLOCK_ELEMENTS", block)
    case = Case((37, 72, 100, 3))
    saved: list[Tensor] = []
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
    ):
        y = lora_linear(**case.tensors, scaling=1.7)
    assert y.dtype is torch.bfloat16
    assert any(t is case.tensors["weight"] for t in saved)
    assert all(t.dtype is torch.bfloat16 for t in saved if t.shape[0] == 37)
    truth, truths = case.truth()
    assert error(y.detach(), truth) < 1e-2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y.backward(case.dy(y))
    for name, expected in truths.items():
        gradient: Any = case.tensors[name].grad
        assert gradient.dtype is torch.float32
        assert error(gradient, expected) < 1e-2, name


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_draws_the_same_mask_again(reentrant: bool) -> None:
    case = Case((37, 72, 100, 3), torch.float64, dropout=0.5)
    y, plain = case.run()
    torch.manual_seed(3)
    again = torch.utils.checkpoint.checkpoint(
        lambda x: lora_linear(
            **case.tensors | {"x": x}, scaling=case.scaling, dropout=case.dropout
        ),
        case.tensors["x"],
        use_reentrant=reentrant,
    )
    torch.testing.assert_close(again, y)
    again.backward(case.dy(y))
    for name, gradient in plain.items():
        torch.testing.assert_close(case.tensors[name].grad, gradient)


@pytest.mark.poison_empty(False)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_torch_compile_without_graph_breaks(dtype: torch.dtype, dropout: float) -> None:
    case = Case((37, 72, 100, 3), dtype, dropout=dropout)
    compiled = torch.compile(lora_linear, fullgraph=True, backend="aot_eager")
    y = compiled(**case.tensors, scaling=case.scaling, dropout=dropout)
    y.sum().backward()
    gradient: Any = case.tensors["lora_a"].grad
    assert torch.isfinite(gradient).all()
    if not dropout:
        truth, _ = case.truth()
        assert error(y.detach(), truth) < BOUND[dtype]
        plain = lora_linear(**case.tensors, scaling=case.scaling)
        (expected,) = torch.autograd.grad(plain.sum(), case.tensors["lora_a"])
        torch.testing.assert_close(gradient, expected)


@pytest.mark.poison_empty(False)
@pytest.mark.parametrize("transposed", [False, True])
def test_torch_compile_over_blocks_of_a_16_bit_weight(
    transposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peftlab_kernels.row_blocks.BLOCK_ELEMENTS", 72 * 25)
    torch._dynamo.reset()
    case = Case((37, 72, 100, 3), torch.float32, torch.bfloat16, transposed=transposed)
    y, gradients = case.run()
    compiled = torch.compile(lora_linear, fullgraph=True, backend="aot_eager")
    again = compiled(**case.tensors, scaling=case.scaling, transposed=transposed)
    torch.testing.assert_close(again, y)
    leaves = {name: t for name, t in case.tensors.items() if t.requires_grad}
    for name, gradient in zip(
        leaves, torch.autograd.grad(again, list(leaves.values()), case.dy(y)), strict=True
    ):
        torch.testing.assert_close(gradient, gradients[name])


def test_another_default_device_does_not_hinder_dropout() -> None:
    case = Case((37, 72, 100, 3), dropout=0.3)
    y, _ = case.run()
    with torch.device("meta"):
        torch.manual_seed(3)
        again = lora_linear(**case.tensors, scaling=case.scaling, dropout=0.3)
    assert torch.equal(again, y)


def test_needs_say_what_is_formed() -> None:
    case = Case((37, 72, 100, 3))
    t = {name: tensor.detach() for name, tensor in case.tensors.items()}
    kernels = EagerKernels()
    fixed: dict[str, Any] = {"scaling": 1.0, "dropout": 0.0, "transposed": False}
    out = kernels.forward(t["x"], t["weight"], None, t["lora_a"], t["lora_b"], **fixed)
    for needs in (Needs(True, False, False), Needs(False, True, False), Needs(False, False, True)):
        actual = kernels.backward(
            out.y, t["x"], t["weight"], t["lora_a"], t["lora_b"], out.h, out.mask,
            needs=needs, **fixed,
        )  # fmt: skip
        assert tuple(gradient is not None for gradient in actual) == tuple(needs)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"x": torch.ones(4, 7)}, ValueError, r"x has shape \(4, 7\).*has 10 in_features"),
        ({"x": torch.ones(4, 10, dtype=torch.int64)}, TypeError, "must be floating"),
        ({"x": torch.ones(4, 10).bfloat16()}, TypeError, "bfloat16 and weight torch.float32"),
        ({"weight": torch.ones(10)}, ValueError, "must be a matrix"),
        ({"weight": torch.ones(6, 10, requires_grad=True)}, ValueError, "frozen here"),
        ({"lora_b": None}, ValueError, "must be given together"),
        ({"lora_a": torch.ones(3, 10)}, ValueError, r"\[R, 10\] and \[6, R\]"),
        ({"bias": torch.ones(5)}, ValueError, r"bias has shape \(5,\); it must be \[6\]"),
        ({"dropout": 1.0}, ValueError, r"dropout is 1.0; it must lie in \[0, 1\)"),
        ({"lora_a": torch.ones(300, 10), "lora_b": torch.ones(6, 300)}, ValueError,
         "the rank is 300"),
        ({"lora_a": torch.tensor(1.0)}, ValueError, r"lora_a has shape \(\)"),
        ({"lora_a": torch.ones(2, 10, dtype=torch.int64)}, TypeError, "lora_a is torch.int64"),
        ({"bias": torch.ones(6, dtype=torch.complex64)}, TypeError, "bias is torch.complex64"),
        ({"scaling": torch.ones(2)}, ValueError, r"scaling has shape \(2,\)"),
    ],
)  # fmt: skip
def test_refusals(changes: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        lora_linear(**Case((4, 10, 6, 2)).tensors | changes)


def test_second_derivatives_are_refused() -> None:
    case = Case((4, 10, 6, 2))
    y = lora_linear(**case.tensors)
    (dx,) = torch.autograd.grad(y.square().sum(), case.tensors["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()
