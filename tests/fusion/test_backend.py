"""The report on the kernels lists every backend of their table."""

from __future__ import annotations

import pytest

from peftlab.fusion.backend import check_environment, describe_kernels
from peftlab_kernels import dispatch
from peftlab_kernels.backends import TorchBackend
from peftlab_kernels.protocol import Call

NO_GPU = "the tensors are on cpu, and Triton needs a CUDA device"


class ToyBackend(TorchBackend):
    """Torch under another name."""

    name = "toy"


class BrokenBackend(TorchBackend):
    """Torch with a reason not to compute."""

    name = "broken"

    def why_not(self, call: Call) -> str | None:
        return f"{call.x.dtype} is too much"


@pytest.fixture(autouse=True)
def backends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("PEFTLAB_KERNEL_CHOICES", "off")
    for backend in (ToyBackend(), BrokenBackend()):
        monkeypatch.setitem(dispatch.BACKENDS, backend.name, backend)


@pytest.mark.parametrize(
    ("requested", "backend"),
    [
        ("auto", "torch"),
        ("toy", "toy"),
        ("triton", "none: triton is requested and cannot compute"),
    ],
)
def test_what_computes_and_why_not_the_others(
    requested: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEFTLAB_BACKEND", requested)
    described = describe_kernels("cpu")
    assert (described["backend"], described["requested"]) == (backend, requested)
    assert described["why_not"] == {
        "triton": NO_GPU, "torch": None, "toy": None, "broken": "torch.bfloat16 is too much",
    }  # fmt: skip


@pytest.mark.parametrize("requested", ["auto", "torch", "toy"])
def test_an_environment_that_computes(requested: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTLAB_BACKEND", requested)
    check_environment("cpu")
