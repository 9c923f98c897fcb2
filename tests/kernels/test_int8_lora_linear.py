"""`int8_lora_linear` on the torch path against float64: of its codes, and of the exact function."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from peftlab_kernels.dispatch import use_backend
from peftlab_kernels.eager.cpu_arithmetic import why_not_int_mm, why_not_qlinear
from peftlab_kernels.eager.int8_backend import EagerInt8Kernels
from peftlab_kernels.eager.int8_products import ENGINES, Engine
from peftlab_kernels.functional import Int8Arithmetic, int8_lora_linear
from peftlab_kernels.int8_format import int8_dequantize
from peftlab_kernels.protocol import Needs
from tests.kernels.errors import BOUND, distance, error, rounding_bound, size
from tests.kernels.int8_cases import Int8Case
from tests.kernels.quantisation_bounds import quantisation_bounds

SHAPES = [(1, 136, 72, 1), (37, 72, 100, 3), (130, 40, 168, 16), (63, 37, 5, 5), (37, 70, 30, 64),
          (0, 8, 12, 2), (3, 0, 5, 2), (3, 5, 0, 2)]  # fmt: skip
"""M, K, N, R; among the K are multiples of neither 4 nor 16."""

ARITHMETICS: tuple[Int8Arithmetic, ...] = ("w8a8", "w8a16")


def compute_with(monkeypatch: pytest.MonkeyPatch, engine: Engine, native: bool = True) -> None:
    """Make this the engine of both base products; skips where it is not right."""
    why_not = {"int_mm": why_not_int_mm, "qlinear": why_not_qlinear}.get(engine)
    if why_not is not None and (reason := why_not()):
        pytest.skip(f"{engine}: {reason}")
    kernels = EagerInt8Kernels(engine, engine, native)
    monkeypatch.setattr("peftlab_kernels.backends.eager_int8_kernels", lambda x: kernels)


def check(case: Int8Case, bound: float | None = None) -> None:
    """Against float64: of the same codes to rounding, of the function to the error of 8 bits."""
    y, gradients = case.run()
    (twin, twins), (exact, exacts), (y_size, sizes) = case.twin(), case.exact(), case.uncancelled()
    y_bound, bounds = quantisation_bounds(case)
    bound = bound or _rounding(case)
    assert y.dtype is case.dtype
    assert error(y, twin, y_size) < bound
    assert distance(y, exact) <= bound * size(exact, y_size) + y_bound
    assert gradients.keys() == twins.keys() == case.leaves.keys()
    for name, gradient in gradients.items():
        assert error(gradient, twins[name], sizes[name]) < bound, name
        far = bound * size(exacts[name], sizes[name]) + bounds[name]
        assert distance(gradient, exacts[name]) <= far, name
        assert gradient.dtype is case.tensors[name].dtype
        assert gradient.is_contiguous()


def _rounding(case: Int8Case) -> float:
    """The steps and scales of w8a8 are fp32 whatever x is."""
    dtypes = [case.dtype, case.adapter_dtype or case.dtype]
    if case.arithmetic == "w8a8":
        dtypes.append(torch.float32)
    return max(rounding_bound(dtype, case.shape[0]) for dtype in dtypes)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_values_and_every_gradient(
    shape: tuple[int, int, int, int],
    dropout: float,
    dtype: torch.dtype,
    arithmetic: Int8Arithmetic,
) -> None:
    check(Int8Case(shape, arithmetic, dtype, dropout=dropout))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    native: bool,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compute_with(monkeypatch, engine, native)
    check(Int8Case(shape, dtype=dtype, dropout=0.2))


def test_two_engines_share_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pass has the range of codes of its own engine."""
    if reason := why_not_qlinear():
        pytest.skip(f"qlinear: {reason}")
    for forward, backward in (("qlinear", "fp32"), ("fp32", "qlinear")):
        kernels = EagerInt8Kernels(forward, backward)  # type: ignore[arg-type]
        monkeypatch.setattr(
            "peftlab_kernels.backends.eager_int8_kernels", lambda x, kernels=kernels: kernels
        )
        case = Int8Case((37, 72, 100, 3))
        y, gradients = case.run()
        twin, twins = case.twin()
        assert error(y, twin) < 1e-6
        assert error(gradients["x"], twins["x"]) < 1e-6
        largest = case.kernels().quantize(case.tensors["x"].detach()).codes.max()
        assert (largest <= 63) == (forward == "qlinear")


@pytest.mark.parametrize(
    ("dtype", "adapter"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_adapters_of_another_dtype(
    dtype: torch.dtype, adapter: torch.dtype, arithmetic: Int8Arithmetic, dropout: float
) -> None:
    check(Int8Case((37, 72, 100, 3), arithmetic, dtype, adapter, dropout))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wherever_chunks_and_blocks_end(
    engine: Engine,
    dropout: float,
    arithmetic: Int8Arithmetic,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of rows multiplied at a time, of rows in the cache, of the weight's rows; none divides M."""
    compute_with(monkeypatch, engine)
    case = Int8Case((37, 72, 100, 3), arithmetic, dtype, dropout=dropout)
    whole, _ = case.run()
    monkeypatch.setattr("peftlab_kernels.eager.int8_backend.CHUNK_ROWS", 16)
    monkeypatch.setattr("peftlab_kernels.row_blocks.CACHED_ELEMENTS", 72 * 7)
    monkeypatch.setattr("peftlab_kernels.row_blocks.BLOCK_ELEMENTS", 72 * 11)
    check(case)
    again, _ = case.run()
    torch.testing.assert_close(again, whole)


@given(
    rows=st.integers(0, 40), in_features=st.integers(0, 70), out_features=st.integers(0, 70),
    rank=st.integers(1, 40), dropout=st.sampled_from([0.0, 0.1, 0.9]), bias=st.booleans(),
    arithmetic=st.sampled_from(ARITHMETICS), dtype=st.sampled_from(list(BOUND)),
)  # fmt: skip
def test_any_shape(
    rows: int, in_features: int, out_features: int, rank: int, dropout: float, bias: bool,
    arithmetic: Int8Arithmetic, dtype: torch.dtype,
) -> None:  # fmt: skip
    check(
        Int8Case(
            (rows, in_features, out_features, rank), arithmetic, dtype, dropout=dropout, bias=bias
        )
    )


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_gradcheck_where_nothing_is_rounded(arithmetic: Int8Arithmetic) -> None:
    """Of A, B and the bias, which no rounding hides; with w8a8 dx is not the function's own."""
    case = Int8Case((5, 7, 6, 3), arithmetic, torch.float64, dropout=0.4)

    def run(lora_a: Tensor, lora_b: Tensor, bias: Tensor) -> Tensor:
        torch.manual_seed(1)
        return case.forward(lora_a=lora_a, lora_b=lora_b, bias=bias)

    leaves = [case.tensors[name] for name in ("lora_a", "lora_b", "bias")]
    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_without_an_adapter_it_is_the_frozen_linear(arithmetic: Int8Arithmetic) -> None:
    case = Int8Case((37, 72, 100, 3), arithmetic)
    y = case.forward(lora_a=None, lora_b=None, dropout=0.5)
    (dx,) = torch.autograd.grad(y, case.tensors["x"], case.dy(y))
    case.tensors["lora_b"].data.zero_()
    twin, twins = case.twin()
    assert error(y.detach(), twin) < 1e-6
    assert error(dx, twins["x"]) < 1e-6


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_lora_bias_and_a_scaling_that_trains(arithmetic: Int8Arithmetic) -> None:
    case = Int8Case((37, 72, 100, 3), arithmetic, torch.float64)
    scaling = torch.tensor([0.8], dtype=torch.float64, requires_grad=True)
    lora_bias = torch.randn(100, dtype=torch.float64, requires_grad=True)
    y = case.forward(scaling=scaling, lora_bias=lora_bias)
    t = case.tensors
    x = t["x"]
    if arithmetic == "w8a8":
        rows = case.kernels().quantize(x.detach())
        # As if the rounding were not there for the gradient.
        x = x + (rows.codes.double() * rows.steps.double().unsqueeze(1) - x).detach()
    weight = int8_dequantize(t["codes"], t["scales"], torch.zeros(100, 72, dtype=torch.float64))
    plain = (
        x @ weight.T + t["bias"]
        + scaling * ((x @ t["lora_a"].T) @ t["lora_b"].T + lora_bias)
    )  # fmt: skip
    torch.testing.assert_close(y, plain, rtol=1e-5, atol=1e-6)
    leaves = [scaling, lora_bias, *(t[name] for name in ("lora_a", "lora_b", "bias"))]
    dy = torch.randn_like(y)
    for ours, theirs in zip(
        torch.autograd.grad(y, leaves, dy), torch.autograd.grad(plain, leaves, dy), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("needed", ["x", "lora_a", "lora_b", "bias"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_one_gradient_alone(needed: str, dropout: float, arithmetic: Int8Arithmetic) -> None:
    """Each gradient is right where it is the only one, and nothing is saved for the others."""
    case = Int8Case((37, 72, 100, 3), arithmetic, dropout=dropout)
    for name, tensor in case.tensors.items():
        if tensor.is_floating_point():
            tensor.requires_grad_(name == needed)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        _, gradients = case.run()
    assert gradients.keys() == {needed}
    assert error(gradients[needed], case.twin()[1][needed]) < 1e-6
    x_saved = any(t.shape == case.tensors["x"].shape for t in saved)
    assert x_saved == (needed == "lora_a")
    assert any(t.shape == (37, 3) for t in saved) == (needed == "lora_b")
    mask_saved = any(t.dtype is torch.uint8 for t in saved)
    assert mask_saved == (bool(dropout) and needed in {"x", "lora_a"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_saved_are_codes_thin_parts_and_bits(
    dtype: torch.dtype, dropout: float, arithmetic: Int8Arithmetic
) -> None:
    """No float of the size of x, y or W, but for w8a16 x itself; never a dequantised weight."""
    case = Int8Case((37, 72, 100, 3), arithmetic, dtype, dropout=dropout)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        case.forward()
    large = [t for t in saved if t.is_floating_point() and t.numel() > 100 * 3]
    if arithmetic == "w8a8":
        assert large == []
    else:
        assert [t.data_ptr() for t in large] == [case.tensors["x"].data_ptr()]
    codes = [t for t in saved if t.dtype is torch.int8]
    assert any(t is case.tensors["codes"] for t in codes)
    assert len(codes) == (2 if arithmetic == "w8a8" else 1)
    assert sum(t.dtype is torch.uint8 for t in saved) == bool(dropout)


def test_siblings_save_the_same_x_once() -> None:
    case, other = Int8Case((37, 72, 100, 3)), Int8Case((37, 72, 40, 5))
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        case.forward()
        other.forward(x=case.tensors["x"])
    codes = [t for t in saved if t.dtype is torch.int8 and t.shape == (37, 72)]
    assert len(codes) == 2
    assert len({t.data_ptr() for t in codes}) == 1


def test_a_change_of_x_between_siblings_is_seen() -> None:
    """By the second; the first's gradients are those of the x that it saw."""
    case = Int8Case((37, 72, 100, 3))
    x = case.tensors["x"].detach().clone()
    before = case.forward(x=x)
    with torch.no_grad():
        x.mul_(torch.linspace(-2, 3, 72))
    after = case.forward(x=x)
    assert torch.equal(after, case.forward(x=x.clone()))
    dy = case.dy(before)
    (gradient,) = torch.autograd.grad(before, case.tensors["lora_a"], dy)
    assert torch.equal(gradient, case.run()[1]["lora_a"])


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_leading_dimensions_and_strides(arithmetic: Int8Arithmetic) -> None:
    case = Int8Case((24, 10, 6, 2), arithmetic)
    flat = case.forward().detach()
    x = case.tensors["x"].detach().view(2, 3, 4, 10)
    assert torch.equal(case.forward(x=x), flat.view(2, 3, 4, 6))
    swapped = x.transpose(0, 2)
    assert not swapped.is_contiguous()
    # A BLAS may sum the rows of its last, narrower tile in another order: no bit-equality here.
    actual = case.forward(x=swapped)
    torch.testing.assert_close(actual, flat.view(2, 3, 4, 6).transpose(0, 2))
    torch.testing.assert_close(case.forward(x=x[0, 0, 0]), flat[0])
    by_columns = case.tensors["x"].detach().T.contiguous().T
    torch.testing.assert_close(case.forward(x=by_columns), flat)


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("engine", ENGINES)
def test_expanded_output_gradients(
    arithmetic: Int8Arithmetic, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sum().backward()` hands over a gradient without strides of its own."""
    compute_with(monkeypatch, engine)
    case = Int8Case((37, 72, 100, 3), arithmetic)
    y = case.forward()
    leaves = list(case.leaves.values())
    for ours, dense in zip(
        torch.autograd.grad(y.sum(), leaves, retain_graph=True),
        torch.autograd.grad(y, leaves, torch.ones_like(y)),
        strict=True,
    ):
        torch.testing.assert_close(ours, dense)


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_call_gives_the_same_bits(arithmetic: Int8Arithmetic, dtype: torch.dtype) -> None:
    case = Int8Case((37, 72, 100, 3), arithmetic, dtype, dropout=0.3)
    y, gradients = case.run()
    again, gradients_again = case.run()
    assert torch.equal(again, y)
    for name, gradient in gradients.items():
        assert torch.equal(gradients_again[name], gradient), name
    other, _ = case.run(seed=4)
    assert not torch.equal(other, y)


def test_dropout_keeps_what_it_says_on_average() -> None:
    case = Int8Case((400, 96, 8, 2), dropout=0.25, bias=False)
    t = case.tensors
    t["x"] = torch.ones(400, 96, requires_grad=True)
    t["lora_a"] = torch.ones(1, 96, requires_grad=True)
    t["lora_b"] = torch.ones(8, 1, requires_grad=True)
    t["codes"] = torch.zeros_like(t["codes"])
    torch.manual_seed(0)
    y = case.forward(scaling=1.0)
    kept = y.detach()[:, 0].double() * 0.75
    torch.testing.assert_close(kept, kept.round(), rtol=0, atol=1e-3)
    # 38,400 draws: five standard deviations are 0.011.
    assert abs(float(kept.sum()) / (400 * 96) - 0.75) < 0.011
    (dx,) = torch.autograd.grad(y.sum(), t["x"])
    assert torch.equal((dx != 0).sum(1).double(), kept.round())


def torch_mixes_rows(inner: int, dtype: torch.dtype) -> bool:
    """Whether torch's own product over `inner` terms lets a NaN in one row reach another.

    oneDNN's bf16 product on AMX does so for some `inner` that are no multiple of 32; what is built
    on such a product cannot keep rows apart there.
    """
    x = torch.ones(37, inner, dtype=dtype)
    x[5] = float("nan")
    others = torch.arange(37) != 5
    for columns in (3, 32, 72, 96, 100, 128):
        weight = torch.ones(inner, columns, dtype=dtype)
        for layout in (weight, weight.T.contiguous().T):
            if not (x @ layout)[others].isfinite().all():
                return True
    return False


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_broken_row_shows_and_stays_alone(
    arithmetic: Int8Arithmetic,
    dtype: torch.dtype,
    bad: float,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compute_with(monkeypatch, engine)
    shape = (37, 72, 100, 3)
    if any(torch_mixes_rows(inner, dtype) for inner in shape[1:]):
        shape = (37, 96, 128, 32)
        assert not any(torch_mixes_rows(inner, dtype) for inner in shape[1:])
    case = Int8Case(shape, arithmetic, dtype)
    whole = case.forward().detach()
    with torch.no_grad():
        case.tensors["x"][5, 7] = bad
    y = case.forward()
    assert not y[5].isfinite().any()
    others = torch.arange(37) != 5
    torch.testing.assert_close(y[others], whole[others])
    dy = case.dy(y)
    dy[9, 2] = bad
    (dx,) = torch.autograd.grad(y, case.tensors["x"], dy)
    assert not dx[9].isfinite().any()
    assert dx[torch.arange(37) != 9].isfinite().all()


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("dtype", list(BOUND))
def test_rows_of_zeros(arithmetic: Int8Arithmetic, dtype: torch.dtype) -> None:
    """Padding: y is the bias there, and all gradients are finite and right."""
    case = Int8Case((37, 72, 100, 3), arithmetic, dtype)
    with torch.no_grad():
        case.tensors["x"][3:6] = 0
    case.tensors["codes"][10] = 0
    case.tensors["scales"][10] = 0
    check(case)
    y = case.forward()
    assert torch.equal(y[4], case.tensors["bias"])
    dy = case.dy(y)
    dy[3:6] = 0
    (dx,) = torch.autograd.grad(y, case.tensors["x"], dy)
    assert torch.equal(dx[3:6], torch.zeros_like(dx[3:6]))
    assert dx.isfinite().all()


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_autocast_computes_in_its_dtype(arithmetic: Int8Arithmetic) -> None:
    case = Int8Case((37, 72, 100, 3), arithmetic)
    saved: list[Tensor] = []
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
    ):
        y = case.forward()
    assert y.dtype is torch.bfloat16
    assert any(t is case.tensors["codes"] for t in saved)
    assert not any(t.dtype is torch.float32 and t.shape == (37, 72) for t in saved)
    truth, truths = case.exact()
    bound = 2e-2 if arithmetic == "w8a8" else 1e-2
    assert error(y.detach(), truth) < bound
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y.backward(case.dy(y))
    for name, expected in truths.items():
        gradient: Any = case.tensors[name].grad
        assert gradient.dtype is torch.float32
        assert error(gradient, expected) < bound, name


def test_x_is_quantised_anew_where_autocast_changes_its_dtype() -> None:
    case = Int8Case((37, 72, 100, 3))
    with torch.no_grad():
        case.tensors["x"][:, 0] = 1 + 2**-9  # bf16 rounds it to 1
    wide = case.forward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = case.forward()
    x = case.tensors["x"].detach()
    assert torch.equal(narrow, case.forward(x=x.bfloat16()))
    assert torch.equal(wide, case.forward(x=x.clone()))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_gradient_checkpointing_draws_the_same_mask_again(
    reentrant: bool, arithmetic: Int8Arithmetic
) -> None:
    case = Int8Case((37, 72, 100, 3), arithmetic, dropout=0.5)
    y, plain = case.run()
    torch.manual_seed(3)
    again = torch.utils.checkpoint.checkpoint(
        lambda x: case.forward(x=x), case.tensors["x"], use_reentrant=reentrant
    )
    assert torch.equal(again, y)
    again.backward(case.dy(y))
    for name, gradient in plain.items():
        torch.testing.assert_close(case.tensors[name].grad, gradient)


# Dynamo cannot trace the functions that poison what torch allocates.
@pytest.mark.poison_empty(False)
@pytest.mark.parametrize(
    ("dtype", "dropout", "arithmetic", "block"),
    [
        case
        for number, case in enumerate(itertools.product(
            (torch.float32, torch.bfloat16), (0.0, 0.2), ARITHMETICS, (72 * 25, 1 << 20)
        ))
        if number.bit_count() % 2 == 0  # half of all, which has every three values together
    ],
)  # fmt: skip
def test_torch_compile_without_graph_breaks(
    dtype: torch.dtype,
    dropout: float,
    arithmetic: Int8Arithmetic,
    block: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("peftlab_kernels.row_blocks.BLOCK_ELEMENTS", block)
    torch._dynamo.reset()
    case = Int8Case((37, 72, 100, 3), arithmetic, dtype, dropout=dropout)
    compiled = torch.compile(int8_lora_linear, fullgraph=True, backend="aot_eager")
    y = compiled(**case.tensors, scaling=case.scaling, dropout=dropout, arithmetic=arithmetic)
    leaves = list(case.leaves.values())
    gradients = torch.autograd.grad(y, leaves, case.dy(y))
    assert all(gradient.isfinite().all() for gradient in gradients)
    if not dropout:
        plain, expected = case.run()
        close = {"rtol": 1.6e-2, "atol": 1e-2} if dtype is torch.bfloat16 else {}
        torch.testing.assert_close(y, plain, **close)
        for actual, wanted in zip(gradients, expected.values(), strict=True):
            torch.testing.assert_close(actual, wanted, **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_auto_is_one_of_the_two_to_the_bit(dtype: torch.dtype) -> None:
    """w8a8 on Gaussian rows; w8a16 where one feature is a hundred times the others."""
    case = Int8Case((100, 256, 100, 3), dtype=dtype)
    assert torch.equal(case.forward(arithmetic="auto"), case.forward(arithmetic="w8a8"))
    with torch.no_grad():
        case.tensors["x"][:, 7] *= 100
    actual = case.forward(arithmetic="auto")
    assert torch.equal(actual, case.forward(arithmetic="w8a16"))
    assert not torch.equal(actual, case.forward(arithmetic="w8a8"))
    allowed = case.forward(arithmetic="auto", tolerance=1e9)
    assert torch.equal(allowed, case.forward(arithmetic="w8a8"))


def test_needs_say_what_is_formed() -> None:
    case = Int8Case((37, 72, 100, 3))
    t = {name: tensor.detach() for name, tensor in case.tensors.items()}
    kernels = EagerInt8Kernels("fp32", "fp32")
    fixed: dict[str, Any] = {"scaling": 1.0, "dropout": 0.0}
    rows = kernels.quantize(t["x"])
    out = kernels.forward(
        rows, case.weight, None, t["lora_a"], t["lora_b"], dtype=torch.float32, **fixed
    )
    for needs in (Needs(True, False, False), Needs(False, True, False), Needs(False, False, True)):
        actual = kernels.backward(
            out.y, rows, case.weight, t["lora_a"], t["lora_b"], out.h, out.mask,
            needs=needs, **fixed,
        )  # fmt: skip
        assert tuple(gradient is not None for gradient in actual) == tuple(needs)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"x": torch.ones(4, 7)}, ValueError, r"x has shape \(4, 7\).*has 10 in_features"),
        ({"x": torch.tensor(1.0)}, ValueError, r"x has shape \(\)"),
        ({"x": torch.ones(4, 10, dtype=torch.int64)}, TypeError, "x is torch.int64"),
        ({"codes": torch.ones(60, dtype=torch.int8)}, ValueError, r"codes have shape \(60,\)"),
        ({"scales": torch.ones(5)}, ValueError, r"scales \(5,\); they must be \[N, K\] and \[N\]"),
        ({"codes": torch.ones(6, 10)}, TypeError, "codes are torch.float32"),
        ({"scales": torch.ones(6).half()}, TypeError, "scales torch.float16"),
        ({"scales": torch.ones(6, requires_grad=True)}, ValueError, "scales require a gradient"),
        ({"lora_b": None}, ValueError, "must be given together"),
        ({"lora_a": torch.ones(3, 10)}, ValueError, r"\[R, 10\] and \[6, R\]"),
        ({"bias": torch.ones(5)}, ValueError, r"bias has shape \(5,\); it must be \[6\]"),
        ({"dropout": 1.0}, ValueError, r"dropout is 1.0; it must lie in \[0, 1\)"),
        ({"scaling": torch.ones(2)}, ValueError, r"scaling has shape \(2,\)"),
        ({"arithmetic": "w4a4"}, ValueError, "'w4a4'; it must be auto, w8a8 or w8a16"),
    ],
)  # fmt: skip
def test_refusals(changes: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        Int8Case((4, 10, 6, 2)).forward(**changes)


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_second_derivatives_are_refused(arithmetic: Int8Arithmetic) -> None:
    case = Int8Case((4, 10, 6, 2), arithmetic)
    y = case.forward()
    (dx,) = torch.autograd.grad(y.square().sum(), case.tensors["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_a_backend_that_cannot_compute_is_an_error_where_it_was_asked_for(
    arithmetic: Int8Arithmetic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    case = Int8Case((4, 10, 6, 2), arithmetic)
    with use_backend("triton"), pytest.raises(RuntimeError, match="needs a CUDA device"):
        case.forward()
