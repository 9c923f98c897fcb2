"""No kernel writes outside its tensors, or reads what nobody wrote.

Every tensor an operator makes lies between bands of NaN, and begins as NaN; so do the inputs. Codes
have no NaN, but they never are -128.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from peftlab_kernels import row_blocks
from peftlab_kernels.triton.configurations import Target
from tests.kernels.triton.int8_layers import DequantizedLayer, Int8Layer
from tests.kernels.triton.layers import BOUND, Layer

BAND = 4096
"""Elements on each side: more than a tile of any configuration here reaches."""


class Guarded:
    """Tensors between bands, and the bands."""

    def __init__(self) -> None:
        self.bands: list[Tensor] = []

    def empty(self, *shape: Any, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
        sizes = torch.Size(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
        count = sizes.numel()
        poison = -128 if dtype is torch.int8 else float("nan")
        storage = torch.full((count + 2 * BAND,), poison, dtype=dtype, device=device)
        self.bands += [storage[:BAND], storage[BAND + count :]]
        return storage[BAND : BAND + count].view(sizes)

    def empty_like(self, tensor: Tensor) -> Tensor:
        return self.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)

    def copy(self, tensor: Tensor) -> Tensor:
        """Between bands, with the strides' order of the original."""
        turned = tensor.dim() == 2 and tensor.stride(0) == 1 < tensor.stride(1)
        source = tensor.T if turned else tensor
        copied = self.empty_like(source.contiguous()).copy_(source)
        return copied.T if turned else copied

    def intact(self) -> bool:
        return all(
            bool((band == -128).all() if band.dtype is torch.int8 else band.isnan().all())
            for band in self.bands
        )


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Guarded]:
    guard = Guarded()
    monkeypatch.setattr(torch, "empty", guard.empty)
    monkeypatch.setattr(torch, "empty_like", guard.empty_like)
    monkeypatch.setattr(row_blocks, "_local", threading.local())  # its room too, and none of before
    yield guard
    assert guard.bands
    assert guard.intact(), "something was written outside its tensor"


@pytest.mark.parametrize("target", ["interpreter", "sm_80", "sm_90"])
@pytest.mark.parametrize("base", ["epilogue", "cublas"])
@pytest.mark.parametrize(
    "shape", [(37, 72, 100, 5), (33, 48, 80, 5), (33, 48, 80, 40), (1, 23, 9, 1)]
)
def test_bands_stay_as_they_are(
    guarded: Guarded,
    shape: tuple[int, int, int, int],
    base: Literal["epilogue", "cublas"],
    target: str,
) -> None:
    layer = Layer(shape, dtype=torch.float16, base=base, target=Target(target, 32), dropout=0.3)
    layer.tensors = {name: guarded.copy(tensor) for name, tensor in layer.tensors.items()}
    out = layer.forward()
    actual = layer.backward(out)
    assert out.h is not None
    assert not out.h.isnan().any()
    errors = layer.errors(out, actual)
    assert all(e <= BOUND[torch.float16] for e in errors.values()), errors


@pytest.mark.parametrize("target", ["interpreter", "sm_80", "sm_90"])
@pytest.mark.parametrize("shape", [(37, 72, 100, 5), (33, 48, 80, 40), (1, 23, 9, 1)])
def test_bands_stay_as_they_are_over_8_bits(
    guarded: Guarded, shape: tuple[int, int, int, int], target: str
) -> None:
    layer = Int8Layer(shape, dtype=torch.float16, target=Target(target, 32), dropout=0.3)
    layer.tensors = {name: guarded.copy(tensor) for name, tensor in layer.tensors.items()}
    out = layer.forward()
    actual = layer.backward(out)
    assert layer.rows is not None
    assert not (layer.rows.codes == -128).any()
    assert out.h is not None
    assert not out.h.isnan().any()
    errors = layer.errors(out, actual)
    assert all(e <= BOUND[torch.float16] for e in errors.values()), errors


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_bands_stay_as_they_are_where_codes_are_dequantised(
    guarded: Guarded, dtype: torch.dtype
) -> None:
    layer = DequantizedLayer((33, 48, 81, 5), dtype=dtype, base="cublas")
    layer.tensors = {name: guarded.copy(tensor) for name, tensor in layer.tensors.items()}
    layer.check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_a_stray_write_is_seen(dtype: torch.dtype) -> None:
    guard = Guarded()
    tensor = guard.empty(3, 5, dtype=dtype)
    assert (tensor == -128).all() if dtype is torch.int8 else tensor.isnan().all()
    assert guard.intact()
    tensor.as_strided((1,), (1,), tensor.storage_offset() + 15)[0] = 1
    assert not guard.intact()
