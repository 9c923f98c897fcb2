"""One quantisation for siblings: the same while x lives and stays, never another's."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from weakref import ref

import pytest
import torch
from torch import Tensor

from peftlab_kernels import shared_rows as module
from peftlab_kernels.eager.int8_backend import EagerInt8Kernels
from peftlab_kernels.int8_format import Int8Rows, Int8Weight, int8_quantize
from peftlab_kernels.shared_rows import shared_rows


@pytest.fixture(autouse=True)
def nothing_made(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is remembered, before and after; codes reach 127 on every machine."""
    kernels = EagerInt8Kernels("fp32", "fp32")
    monkeypatch.setattr("peftlab_kernels.backends.eager_int8_kernels", lambda x: kernels)
    module._latest.made = None
    yield
    module._latest.made = None


@pytest.fixture
def weight() -> Int8Weight:
    return Int8Weight(*int8_quantize(torch.randn(6, 10)))


def quantised(x: Tensor, weight: Int8Weight) -> Int8Rows:
    return shared_rows(x, x.reshape(-1, x.shape[-1]), weight)


def test_siblings_get_the_same_rows(weight: Int8Weight) -> None:
    x = torch.randn(2, 3, 10, requires_grad=True)
    first = quantised(x, weight)
    assert quantised(x, Int8Weight(*int8_quantize(torch.randn(4, 10)))) is first
    assert not first.steps.requires_grad
    assert first.codes.shape == (6, 10)


def test_another_tensor_is_another_even_of_the_same_memory(weight: Int8Weight) -> None:
    x = torch.randn(6, 10)
    first = quantised(x, weight)
    assert quantised(x.clone(), weight) is not first
    assert quantised(x.view(6, 10), weight) is not first


def test_what_was_written_to_is_quantised_anew(weight: Int8Weight) -> None:
    x = torch.randn(6, 10)
    first = quantised(x, weight)
    x[0, 0] = 100
    second = quantised(x, weight)
    assert second.steps[0] == pytest.approx(100 / 127)
    assert first.steps[0] != second.steps[0]
    x.view(-1).mul_(2)  # through a view, too
    assert quantised(x, weight).steps[0] == pytest.approx(200 / 127)


def test_another_dtype_or_engine_is_another(
    weight: Int8Weight, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(6, 10)
    first = quantised(x, weight)
    narrow = shared_rows(x, x.bfloat16(), weight)
    assert narrow is not first
    assert not torch.equal(narrow.steps, first.steps)
    assert quantised(x, weight).codes.abs().max() == 127
    kernels = EagerInt8Kernels("qlinear", "qlinear")
    monkeypatch.setattr("peftlab_kernels.backends.eager_int8_kernels", lambda x: kernels)
    assert quantised(x, weight).codes.abs().max() == 63


def test_rows_go_with_their_tensor(weight: Int8Weight) -> None:
    x = torch.randn(6, 10)
    codes = ref(quantised(x, weight).codes)
    assert codes() is not None
    del x
    gc.collect()
    assert codes() is None


def test_a_graph_does_not_keep_the_activation(weight: Int8Weight) -> None:
    x = torch.randn(6, 10, requires_grad=True) * 2
    quantised(x, weight)
    kept = ref(x)
    del x
    gc.collect()
    assert kept() is None


def test_a_tensor_made_after_one_that_died_is_no_relative(weight: Int8Weight) -> None:
    """Memory and identity are used again."""
    for value in (1.0, 2.0, 3.0):
        x = torch.full((6, 10), value)
        assert quantised(x, weight).steps[0] == pytest.approx(value / 127)
        del x


def test_threads_do_not_see_each_other(weight: Int8Weight) -> None:
    x = torch.randn(6, 10)
    mine = quantised(x, weight)
    theirs: list[Int8Rows] = []
    thread = threading.Thread(target=lambda: theirs.append(quantised(x, weight)))
    thread.start()
    thread.join()
    assert theirs[0] is not mine
    assert torch.equal(theirs[0].codes, mine.codes)
    assert quantised(x, weight) is mine


def test_inference_tensors_have_no_version_and_are_not_remembered(weight: Int8Weight) -> None:
    with torch.inference_mode():
        x = torch.randn(6, 10)
        first = quantised(x, weight)
        x[0] = 100
        second = quantised(x, weight)
        assert second is not first
        assert second.steps[0] > first.steps[0]
    assert module._latest.made is None
