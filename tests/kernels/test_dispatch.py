"""The table of backends: which one computes a call, and that another one is an entry of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peftlab_kernels import dispatch
from peftlab_kernels.dispatch import requested_backend, use_backend
from peftlab_kernels.eager.backend import EagerKernels
from peftlab_kernels.eager.int8_backend import EagerInt8Kernels
from peftlab_kernels.functional import int8_lora_linear, lora_linear
from peftlab_kernels.int8_format import int8_quantize
from peftlab_kernels.protocol import Call, Int8Kernels, Kernels


class ToyBackend:
    """Computes calls of at most four rows, by torch, and counts them."""

    name = "toy"

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def why_not(self, call: Call) -> str | None:
        rows = call.x.shape[0]
        return None if rows <= 4 else f"x has {rows} rows, and the toy takes 4"

    def kernels(self, call: Call) -> Kernels:
        self.calls.append(call)
        return EagerKernels()

    def int8_kernels(self, call: Call) -> Int8Kernels:
        self.calls.append(call)
        return EagerInt8Kernels("fp32", "fp32")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> ToyBackend:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    backend = ToyBackend()
    monkeypatch.setitem(dispatch.BACKENDS, backend.name, backend)
    return backend


def tensors(rows: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(1)
    shapes = {"x": (rows, 10), "weight": (6, 10), "lora_a": (2, 10), "lora_b": (6, 2)}
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def test_a_third_backend_is_an_entry_of_the_table(toy: ToyBackend) -> None:
    """By name it computes both operators, and what it cannot compute it refuses."""
    of_three = tensors(3)
    expected = lora_linear(**of_three)
    assert toy.calls == []
    with use_backend("toy"):
        assert torch.equal(lora_linear(**of_three, dropout=0.0), expected)
        (call,) = toy.calls
        assert call.weight is of_three["weight"]
        codes, scales = int8_quantize(of_three.pop("weight"))
        int8_lora_linear(**of_three, codes=codes, scales=scales, arithmetic="w8a8")
        assert len(toy.calls) > 1
        with pytest.raises(RuntimeError, match="backend toy cannot compute this call: x has 5"):
            lora_linear(**tensors(5))


def test_auto_takes_the_first_that_can_compute(
    toy: ToyBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "BACKENDS", {"toy": toy, **dispatch.BACKENDS})
    lora_linear(**tensors(5))
    assert toy.calls == []
    lora_linear(**tensors(4))
    assert len(toy.calls) == 1


def test_requests_of_two_threads_end_in_any_order() -> None:
    first, second = use_backend("torch"), use_backend("triton")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert requested_backend() == "triton"
    second.__exit__(None, None, None)
    assert requested_backend() == "auto"


def test_a_requested_backend_computes_or_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with use_backend("triton"), pytest.raises(RuntimeError, match="needs a CUDA device; use auto"):
        lora_linear(**tensors(4))
    with use_backend("torch"):
        lora_linear(**tensors(4))


def test_triton_leaves_what_torch_compile_traces_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    reasons = dispatch.why_not(torch.ones(3, 8), torch.ones(5, 8))
    assert reasons["torch"] is None
    assert "torch.compile is tracing" in (reasons["triton"] or "")


def test_an_unknown_backend_is_refused_with_the_known_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = "unknown backend 'cuda'; use auto, triton, torch"
    with pytest.raises(ValueError, match=f"use_backend: {known}"), use_backend("cuda"):
        pass
    monkeypatch.setenv("PEFTLAB_BACKEND", "cuda")
    with pytest.raises(ValueError, match=f"PEFTLAB_BACKEND: {known}"):
        lora_linear(**tensors(4))
