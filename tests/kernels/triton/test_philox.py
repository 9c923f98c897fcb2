"""The mask: Philox as its authors define it, one mask for every kernel and tile, fair draws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from peftlab_kernels.triton import configurations as tables
from peftlab_kernels.triton.configurations import Strip, Target, Tile, configurations
from peftlab_kernels.triton.lora_backward import cross
from peftlab_kernels.triton.lora_forward import down_project
from peftlab_kernels.triton.masked_addition import add_masked
from peftlab_kernels.triton.philox import Dropout, draw_seed, dropout_of, write_mask
from peftlab_kernels.triton.product import product

CPU = torch.device("cpu")
HERE = Target("interpreter", 4)
SEED = torch.tensor([0x3243F6A8885A308D])


def philox(counter: tuple[int, int, int, int], key: tuple[int, int], rounds: int) -> list[int]:
    """Philox 4x32 in Python integers, from the paper."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & 0xFFFFFFFF, (a >> 32) ^ c3 ^ k1, a & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def expected(seed: int, rows: int, columns: int, threshold: int) -> NDArray[np.bool_]:
    keep = np.empty((rows, columns), dtype=bool)
    for row in range(rows):
        for column in range(columns):
            words = philox((row, column // 8, 0, 0), (seed & 0xFFFFFFFF, seed >> 32), 7)
            half = words[column % 8 // 2] >> (16 * (column % 2)) & 0xFFFF
            keep[row, column] = half >= threshold
    return keep


def mask_of(dropout: Dropout, rows: int, columns: int, tile: tuple[int, int]) -> Tensor:
    return write_mask(dropout, rows, columns, CPU, tile)


def test_philox_gives_the_published_numbers() -> None:
    """The known answers of the authors' own library, ten rounds."""
    assert philox((0, 0, 0, 0), (0, 0), 10) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize("seed", [int(SEED), 0, 2**63 - 2, 0x00000001FFFFFFFF])
def test_the_mask_is_philox(seed: int) -> None:
    dropout = dropout_of(torch.tensor([seed]), 0.3)
    actual = mask_of(dropout, 19, 45, (8, 16))
    assert (actual.numpy() == expected(seed, 19, 45, dropout.threshold)).all()


def test_every_tile_shape_draws_one_mask() -> None:
    dropout = dropout_of(SEED, 0.2)
    whole = mask_of(dropout, 70, 200, (128, 256))
    for tile in ((4, 16), (16, 32), (32, 128), (128, 64), (64, 32)):
        assert torch.equal(mask_of(dropout, 70, 200, tile), whole)


def strips() -> set[Strip]:
    """The distinct side-pass blocks of all targets."""
    actual = {Strip(16, 16, 4, 1)}
    for table in (*tables._NARROW.values(), *tables._WIDE.values()):
        for some in (table.down_dropout, table.cross_dropout):
            actual |= {replace(strip, warps=4, stages=1) for strip in some.values()}
    return actual


def tiles() -> set[Tile]:
    return {
        replace(tile, warps=4, stages=1)
        for table in (*tables._NARROW.values(), *tables._WIDE.values())
        for tile in (*table.product_dropout, table.product_ragged)
    }


@pytest.mark.parametrize("strip", sorted(strips(), key=str), ids=str)
def test_the_side_passes_see_the_mask(strip: Strip) -> None:
    """Of ones, h with A = 1 and dA with g = 1 are the mask itself."""
    dropout, ones = dropout_of(SEED, 0.3), torch.ones(32, 32)
    keep, eye = mask_of(dropout, 32, 32, (16, 16)).float(), torch.eye(32)
    h = down_project(ones, eye, factor=1.0, dropout=dropout, target=HERE, strip=strip)
    assert torch.equal(h, keep)
    assert torch.equal(cross(eye, ones, eye, dropout=dropout, target=HERE, strip=strip), keep)
    dx = add_masked(torch.zeros(32, 32), eye, ones, dropout=dropout, target=HERE, strip=strip)
    assert torch.equal(dx, keep)


@pytest.mark.parametrize("tile", sorted(tiles(), key=str), ids=str)
def test_the_product_sees_the_mask(tile: Tile) -> None:
    dropout, ones = dropout_of(SEED, 0.3), torch.ones(32, 64)
    low, weight = torch.eye(32), torch.zeros(64, 16)
    dx = product(ones[:, :16], weight, low, ones, dropout=dropout, target=HERE, tile=tile)
    assert torch.equal(dx, mask_of(dropout, 32, 64, (16, 16)).float())


@pytest.mark.parametrize("probability", [0.05, 0.5, 0.9])
def test_draws_are_fair(probability: float) -> None:
    """The share kept, over all, each row and each place in a call, within five deviations."""
    dropout = dropout_of(SEED, probability)
    kept = mask_of(dropout, 512, 512, (128, 128)).double()
    variance = probability * (1 - probability)
    for share in (kept.mean(), kept.mean(0), kept.mean(1), kept.view(512, 64, 8).mean((0, 1))):
        count = kept.numel() / share.numel()
        worst = (share - (1 - probability)).abs().max() / (variance / count) ** 0.5
        assert worst < 5
    scatter = kept.mean(1).var() / (variance / 512)
    assert 0.7 < scatter < 1.3, "rows depend on one another"
    assert abs(dropout.scale * (1 - dropout.threshold / 2**16) - 1) < 1e-12


def test_masks_of_two_seeds_are_strangers() -> None:
    masks = [mask_of(dropout_of(torch.tensor([s]), 0.5), 128, 512, (128, 128)) for s in (5, 6)]
    agreeing = (masks[0] == masks[1]).double().mean()
    assert abs(agreeing - 0.5) < 5 * 0.5 / (128 * 512) ** 0.5


def test_the_seed_comes_out_of_torchs_generator() -> None:
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = draw_seed()
    torch.set_rng_state(state)
    assert torch.equal(draw_seed(), first)
    assert not torch.equal(draw_seed(), first)
    assert (first.dtype, first.shape, first.device.type) == (torch.int64, (1,), "cpu")


def test_extreme_probabilities() -> None:
    assert dropout_of(SEED, 0.0).threshold == 0
    assert dropout_of(None, 0.3).threshold == 0
    nearly_all = dropout_of(SEED, 1 - 1e-9)
    assert nearly_all.scale == 2**16
    assert mask_of(nearly_all, 64, 512, (64, 128)).sum() < 10


def test_every_target_has_a_table() -> None:
    for name in tables._NARROW:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            table = configurations(Target(name, 1), dtype)
            assert max(table.down) == max(table.down_dropout)
            assert max(table.cross) == max(table.cross_dropout)
            assert table.product_ragged.tma is False
            tiles = table.product + table.product_transposed + table.product_dropout
            assert len({tile.tma for tile in tiles}) == 1
