"""`TritonInt8Kernels` with the tiles of each target, and with sums that many programs share."""

from __future__ import annotations

import pytest
import torch

from peftlab_kernels.triton.configurations import Target
from tests.kernels.triton.int8_layers import Int8Layer


@pytest.mark.parametrize("name", ["sm_80", "sm_86", "sm_90", "sm_120"])
@pytest.mark.parametrize("shape", [(37, 72, 100, 5), (70, 48, 176, 40)])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_configurations_of_each_target(
    name: str, shape: tuple[int, int, int, int], dropout: float
) -> None:
    """Rows of 72 and 100 bytes are ragged; those of 48 and 176 go by descriptors on sm_90."""
    Int8Layer(shape, dtype=torch.float16, target=Target(name, 4), dropout=dropout).check()


@pytest.mark.parametrize("rank", [16, 64])
def test_sums_over_many_programs(rank: int) -> None:
    """More processors than blocks of rows: every sum is split."""
    Int8Layer((150, 140, 40, rank), target=Target("interpreter", 64), dropout=0.1).check()


def test_two_runs_agree_bit_for_bit() -> None:
    layer = Int8Layer((150, 140, 40, 16), dropout=0.3, target=Target("interpreter", 64))
    first, second = layer.forward(), layer.forward()
    assert torch.equal(first.y, second.y)
    assert first.mask is not None
    assert second.mask is not None
    assert torch.equal(first.mask, second.mask)
    for one, other in zip(layer.backward(first), layer.backward(second), strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)
