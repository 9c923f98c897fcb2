"""The gate's measure: one on Gaussian rows, large where one feature is, deaf to empty rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from peftlab_kernels import reference
from peftlab_kernels.eager.cpu_arithmetic import why_not_int_mm, why_not_qlinear
from peftlab_kernels.eager.int8_backend import EagerInt8Kernels
from peftlab_kernels.eager.int8_products import ENGINES, Engine
from peftlab_kernels.error_gate import (
    GAUSSIAN_ERROR,
    SAMPLED_ROWS,
    TOLERANCE,
    backward_error,
    forward_error,
    verdict_on,
)
from peftlab_kernels.int8_format import Int8Weight, int8_quantize


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Engine:
    why_not = {"qlinear": why_not_qlinear, "int_mm": why_not_int_mm}.get(request.param)
    if why_not is not None and (reason := why_not()):
        pytest.skip(f"{request.param}: {reason}")
    kernels = EagerInt8Kernels(request.param, request.param)
    monkeypatch.setattr("peftlab_kernels.backends.eager_int8_kernels", lambda x: kernels)
    actual: Engine = request.param
    return actual


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weight_of(out_features: int, in_features: int) -> Int8Weight:
    return Int8Weight(*int8_quantize(gaussian(out_features, in_features, seed=5) * 0.02))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gaussian_rows_are_about_one(engine: Engine, dtype: torch.dtype) -> None:
    """Whichever codes the engine has; narrower rows have smaller maxima, and a bit less."""
    weight = weight_of(300, 2048)
    assert 0.7 < forward_error(gaussian(200, 2048).to(dtype), weight) < 1.2
    assert 0.7 < backward_error(gaussian(200, 300).to(dtype) * 1e-4, weight) < 1.2
    assert verdict_on(gaussian(200, 2048).to(dtype), weight, TOLERANCE) == "w8a8"


def test_it_is_the_error_of_the_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the reference's, in float64, on the rows that are measured: here all."""
    monkeypatch.setattr(
        "peftlab_kernels.backends.eager_int8_kernels", lambda x: EagerInt8Kernels("fp32", "fp32")
    )
    weight, x = weight_of(100, 256), gaussian(SAMPLED_ROWS, 256)
    rounded = reference.dequantize_rows(*reference.quantize_rows(x.double()))
    matrix = reference.dequantize_rows(weight.codes, weight.scales.double())
    lost, exact = (x - rounded) @ matrix.T, x.double() @ matrix.T
    ratios = lost.norm(dim=1) / exact.norm(dim=1)
    expected = float(ratios.square().mean().sqrt()) / GAUSSIAN_ERROR
    assert forward_error(x, weight) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_outlier_feature_gates(engine: Engine, channels: int) -> None:
    weight, x = weight_of(300, 1024), gaussian(200, 1024)
    x[:, :channels] *= 100
    assert forward_error(x, weight) > TOLERANCE
    assert verdict_on(x, weight, TOLERANCE) == "w8a16"
    assert verdict_on(x, weight, 1e9) == "w8a8"


def test_an_outlier_in_the_gradients_shows_backward(engine: Engine) -> None:
    weight, dy = weight_of(1024, 300), gaussian(200, 1024)
    assert backward_error(dy, weight) < 1.5
    dy[:, 3] *= 300
    assert backward_error(dy, weight) > TOLERANCE


def test_rows_of_zeros_say_nothing(engine: Engine) -> None:
    weight, x = weight_of(300, 1024), gaussian(200, 1024)
    padded = x.clone()
    padded[::2] = 0
    assert forward_error(padded, weight) == pytest.approx(forward_error(x, weight), rel=0.15)
    assert forward_error(torch.zeros(50, 1024), weight) == 0.0
    assert forward_error(torch.zeros(0, 1024), weight) == 0.0
    assert backward_error(torch.zeros(50, 300), weight) == 0.0


def test_one_loud_token_hides_no_other(engine: Engine) -> None:
    weight, x = weight_of(300, 1024), gaussian(64, 1024)
    x[1:, 0] *= 100
    alone = forward_error(x, weight)
    x[0] *= 1e4
    assert forward_error(x, weight) == pytest.approx(alone, rel=0.01)


def test_a_token_of_which_the_loss_hardly_depends_does_not_gate(engine: Engine) -> None:
    weight, dy = weight_of(1024, 300), gaussian(64, 1024)
    alone = backward_error(dy, weight)
    dy[5] *= 1e-4
    dy[5, 0] = 1000 * dy[5].abs().max()
    assert backward_error(dy, weight) == pytest.approx(alone, rel=0.1)


def test_a_few_rows_spread_over_all_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = weight_of(40, 64), gaussian(1000, 64)
    few = gaussian(1000, 64, seed=1) * torch.linspace(0.1, 9, 64)
    few[::15] = x[::15]  # 1000 // 64 is 15
    assert forward_error(few, weight) == forward_error(x, weight)
    assert forward_error(x[:5], weight) > 0


def test_no_graph_is_made() -> None:
    weight = weight_of(40, 64)
    x = gaussian(10, 64).requires_grad_()
    assert isinstance(forward_error(x, weight), float)
    assert isinstance(backward_error(gaussian(10, 40).requires_grad_(), weight), float)
