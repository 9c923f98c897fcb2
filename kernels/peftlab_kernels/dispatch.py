"""Which backend computes a call: chosen once, in forward, and kept for its backward.

`auto` takes the first backend of the table that can compute the call. A backend that is requested
by name either computes or raises.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from peftlab_kernels.backends import TorchBackend, TritonBackend
from peftlab_kernels.int8_format import Int8Weight
from peftlab_kernels.protocol import Backend, Call, Int8Kernels, Kernels

AUTO = "auto"
VARIABLE = "PEFTLAB_BACKEND"

BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        TritonBackend(),
        TorchBackend(),
    )
}
"""The backends by name, in the order in which `auto` tries them; torch, which computes every call,
comes last."""

_requests: list[tuple[str]] = []
"""The backends requested by `use_backend`, innermost last; each in a tuple of its own."""


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Compute with this backend, or with `auto`, inside the `with`, in every thread.

    Gradient checkpointing repeats forward in autograd's threads, which must use the same one.
    Raises `ValueError` for an unknown backend.
    """
    request = (_checked(backend, "use_backend"),)
    _requests.append(request)
    try:
        yield
    finally:
        # Not pop: another thread may have added a request meanwhile.
        _requests[:] = [other for other in _requests if other is not request]


def requested_backend() -> str:
    """The backend that `use_backend`, else `PEFTLAB_BACKEND` requests; else `auto`."""
    if _requests:
        return _requests[-1][0]
    return _checked(os.environ.get(VARIABLE) or AUTO, VARIABLE)


def why_not(x: Tensor, weight: Tensor | Int8Weight) -> dict[str, str | None]:
    """For each backend why it cannot compute a call on these tensors; None where it can."""
    call = Call(x, weight)
    return {name: backend.why_not(call) for name, backend in BACKENDS.items()}


def kernels_for(
    x: Tensor,
    weight: Tensor | Int8Weight,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    *,
    dropout: float,
    transposed: bool,
) -> Kernels:
    """The kernels for one call, on matrices as `protocol.Kernels` describes them.

    Raises `RuntimeError`, with the reason, where a requested backend cannot compute the call.
    """
    call = Call(x, weight, lora_a, lora_b, dropout, transposed)
    return _backend_for(call).kernels(call)


def int8_kernels_for(
    x: Tensor, weight: Int8Weight, lora_a: Tensor | None = None, lora_b: Tensor | None = None
) -> Int8Kernels:
    """The kernels for one call with both operands in 8 bits; raises as `kernels_for` does."""
    call = Call(x, weight, lora_a, lora_b)
    return _backend_for(call).int8_kernels(call)


def _backend_for(call: Call) -> Backend:
    requested = requested_backend()
    reason: str | None = None
    for name, backend in BACKENDS.items():
        if requested in (AUTO, name):
            reason = backend.why_not(call)
            if reason is None:
                return backend
    raise RuntimeError(
        f"the backend {requested} cannot compute this call: {reason}; use auto or torch instead"
    )


def _checked(backend: str, origin: str) -> str:
    if backend != AUTO and backend not in BACKENDS:
        raise ValueError(
            f"{origin}: unknown backend {backend!r}; use {', '.join((AUTO, *BACKENDS))}"
        )
    return backend
