"""The reused room: one for each purpose, dtype and thread, which grows and may be written to."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from peftlab_kernels import row_blocks as module
from peftlab_kernels.functional import int8_lora_linear
from peftlab_kernels.int8_format import int8_quantize
from peftlab_kernels.row_blocks import workspace

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_room() -> Iterator[None]:
    kept = module._local.__dict__.pop("kept", None)
    yield
    module._local.__dict__["kept"] = kept or {}


def room(*shape: int, purpose: str = "weight", dtype: torch.dtype = torch.float32) -> Tensor:
    return workspace(purpose, torch.Size(shape), dtype, CPU)


def test_it_is_used_again_and_grows_to_the_largest() -> None:
    small = room(3, 4)
    assert small.shape == (3, 4)
    assert room(2, 6).data_ptr() == small.data_ptr()
    large = room(5, 6)
    assert large.data_ptr() == room(3, 4).data_ptr()
    assert room(3, 4).is_contiguous()
    assert room(0, 4).shape == (0, 4)


def test_purposes_and_dtypes_are_apart() -> None:
    different = [room(3, 4), room(3, 4, purpose="other"), room(3, 4, dtype=torch.bfloat16)]
    assert len({tensor.data_ptr() for tensor in different}) == 3


def test_threads_are_apart() -> None:
    mine = room(3, 4)
    theirs: list[Tensor] = []
    thread = threading.Thread(target=lambda: theirs.append(room(3, 4)))
    thread.start()
    thread.join()
    assert theirs[0].data_ptr() != mine.data_ptr()


def test_made_under_inference_it_serves_training() -> None:
    with torch.inference_mode():
        room(3, 4)
    again = room(3, 4)
    assert not again.is_inference()
    again.fill_(1.0)
    x = torch.randn(2, 4, requires_grad=True)
    (x @ again.T).sum().backward()
    assert x.grad is not None


def test_backward_is_right_though_another_layer_came_between() -> None:
    """The dequantised copy is made again: none is saved, and none is another layer's."""
    torch.manual_seed(0)
    first, second = (int8_quantize(torch.randn(30, 20)) for _ in range(2))
    x = torch.randn(7, 20, dtype=torch.bfloat16, requires_grad=True)
    alone = torch.autograd.grad(int8_lora_linear(x, *first, arithmetic="w8a16").sum(), x)[0]
    y = int8_lora_linear(x, *first, arithmetic="w8a16")
    int8_lora_linear(x, *second, arithmetic="w8a16")
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(dx, alone)
