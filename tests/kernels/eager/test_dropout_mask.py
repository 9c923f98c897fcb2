"""The mask on a CPU: its share of kept elements, its bits, and the generator that governs it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from peftlab_kernels.eager.dropout_mask import draw_rows, drop, empty_mask, kept_rows, scale_of_kept


def draw(x: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
    """The mask as it rests, and as bool [M, K]."""
    mask = empty_mask(x)
    keep = torch.zeros(x.shape, dtype=torch.bool)
    for rows, kept in draw_rows(mask, x.shape[1], dropout):
        keep[rows] = kept
    return mask, keep


@pytest.mark.parametrize("shape", [(1, 1), (3, 9), (700, 1000), (5, 600_001), (0, 4)])
def test_the_bits_say_what_was_drawn(shape: tuple[int, int]) -> None:
    x = torch.empty(shape)
    mask, keep = draw(x, 0.3)
    assert mask.shape == (shape[0], -(-shape[1] // 8))
    again = torch.zeros_like(keep)
    for rows, kept in kept_rows(mask, shape[1]):
        again[rows] = kept
    assert torch.equal(again, keep)


@pytest.mark.parametrize("dropout", [0.01, 0.05, 0.5, 0.99])
def test_the_share_kept(dropout: float) -> None:
    """Over a million draws, within five standard deviations; rows and columns alike."""
    x = torch.empty(1000, 1000)
    keep = draw(x, dropout)[1].double()
    deviation = (dropout * (1 - dropout)) ** 0.5
    assert abs(keep.mean() - (1 - dropout)) < 5 * deviation / 1000
    for axis in (0, 1):
        means = keep.mean(axis)
        assert (means - (1 - dropout)).abs().max() < 6 * deviation / 1000**0.5
        assert means.std() == pytest.approx(deviation / 1000**0.5, rel=0.15)
    assert scale_of_kept(dropout) == pytest.approx(1 / (1 - dropout), rel=1e-3)


def test_neighbours_are_independent() -> None:
    keep = draw(torch.empty(1000, 1000), 0.5)[1].double() - 0.5
    for shift in (1, 2, 4, 8, 64):
        correlation = (keep[:, shift:] * keep[:, :-shift]).mean() * 4
        assert abs(correlation) < 5e-3, shift


def test_torch_s_seed_governs_it() -> None:
    x = torch.empty(30, 40)
    actual = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        actual.append(draw(x, 0.5)[1])
    assert torch.equal(actual[0], actual[1])
    assert not torch.equal(actual[0], actual[2])
    assert not torch.equal(actual[2], draw(x, 0.5)[1])


@pytest.mark.parametrize("columns", [1, 37, 64])
def test_the_mask_does_not_depend_on_blocks(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with other threads, the same seed draws the same mask."""
    x = torch.empty(50, columns)
    actual = []
    for elements in (1 << 20, 3 * columns):
        monkeypatch.setattr("peftlab_kernels.row_blocks.CACHED_ELEMENTS", elements)
        torch.manual_seed(4)
        actual.append(draw(x, 0.5)[1])
    assert torch.equal(*actual)


def test_a_dropout_of_nearly_one_keeps_something_finite() -> None:
    assert scale_of_kept(0.9999999) == 65536.0
    assert scale_of_kept(0.0) == 1.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("strided", [False, True])
def test_dropping_zeroes_and_touches_nothing_else(dtype: torch.dtype, strided: bool) -> None:
    x = torch.randn(30, 41).to(dtype)
    x = x[:, ::2] if strided else x
    keep = torch.rand(x.shape) < 0.5
    expected = torch.where(keep, x, torch.zeros_like(x))
    out = torch.empty(x.shape, dtype=dtype)
    assert drop(x, keep, out) is out
    assert torch.equal(out, expected)
    assert not torch.equal(x, expected)
    drop(x, keep, x)
    assert torch.equal(x, expected)
