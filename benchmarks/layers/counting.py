"""Counts of a step: bytes saved, alive and moved, matrix products, operators.

They are the same on every machine that takes the same path through the code, so that continuous
integration can check them, unlike times.

Counted is what torch dispatches, but not work inside numpy, inside torch's own kernels, or inside
code compiled by torch.compile; on CUDA the allocator's own peak is the better figure.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_PRODUCTS = flop_registry | {
    # torch's own table lacks the in-place form, which would then count as free.
    torch.ops.aten.addmm_: flop_registry[torch.ops.aten.addmm],
    torch.ops.aten.baddbmm_: flop_registry[torch.ops.aten.baddbmm],
}
_MAKES_ROOM = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_READS_NOTHING = {"detach", "alias", "_unsafe_view", "lift_fresh"}


@dataclass(frozen=True, slots=True)
class Counts:
    """One step's counts; bytes are those of whole storages, a shared one once.

    `saved_bytes`: kept for backward when forward ended, parameters and buffers aside.
    `peak_live_bytes`: the most that was alive at a time of all that the step itself made.
    `flops`: of matrix products and, where torch's table knows it, attention.
    `operators`: calls that read or write elements; views and bare allocations are none.
    `bytes_moved`: of the tensors that these calls take and give, each at each call.
    """

    saved_bytes: int
    peak_live_bytes: int
    flops: int
    operators: int
    bytes_moved: int


def count(forward: Callable[[], Tensor], weights: Iterable[Tensor]) -> Counts:
    """The counts of `forward` and of backward from its result, with gradients of ones.

    `weights` are tensors that are there with or without training: parameters and buffers. The
    gradients that are left on leaves count as alive, as they are.
    """
    with Watch() as watch, SavedBytes(weights) as saved:
        y = forward()
        kept = saved.bytes
        y.backward(torch.ones_like(y))
    return watch.counts(kept)


class Watch(TorchDispatchMode):
    """Counts what is dispatched inside the `with`: storages alive, FLOPs, operators by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak_live_bytes = 0
        self.flops = 0
        self.bytes_moved = 0
        self.names: Counter[str] = Counter()
        self._live_bytes = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    @property
    def operators(self) -> int:
        """The number of operators called that read or write elements."""
        return self.names.total()

    def counts(self, saved_bytes: int) -> Counts:
        """All counts, with those of `SavedBytes`."""
        return Counts(
            saved_bytes, self.peak_live_bytes, self.flops, self.operators, self.bytes_moved
        )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet not in _PRODUCTS:
            # Composite operators, which autograd takes apart, come whole where it is off.
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        given = _tensors((args, kwargs))
        for tensor in given:
            self._know(tensor, 0)
        result = func(*args, **kwargs)
        made = _tensors(result)
        for tensor in made:
            self._know(tensor, _size(tensor))
        self.peak_live_bytes = max(self.peak_live_bytes, self._live_bytes)
        if packet in _PRODUCTS:
            self.flops += _PRODUCTS[packet](*args, **kwargs, out_val=result)
        name = packet.__name__
        if not func.is_view and name not in _MAKES_ROOM | _READS_NOTHING:
            self.names[name] += 1
            self.bytes_moved += sum(t.numel() * t.element_size() for t in (*given, *made))
        return result

    def _know(self, tensor: Tensor, size: int) -> None:
        """Record a storage; one from before the step counts 0 bytes."""
        storage = _storage(tensor)
        key = storage._cdata
        if key in self._known:
            return

        def gone(_: Any) -> None:
            self._live_bytes -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)
        self._live_bytes += size


class SavedBytes:
    """Context manager: what is saved for backward at the moment.

    `weights` do not count. `bytes` is of everything; `bytes_of_layers` of what the forwards of
    `layers`, their children's included, saved.
    """

    def __init__(self, weights: Iterable[Tensor], *, layers: Iterable[nn.Module] = ()) -> None:
        self._weights = {w.untyped_storage().data_ptr() for w in weights}
        self._layers = tuple(layers)
        self._depth = 0
        self._kept: weakref.WeakSet[_Kept] = weakref.WeakSet()
        self._hooks = saved_tensors_hooks(self._pack, lambda kept: kept.tensor)
        self._undo: list[Callable[[], object]] = []

    @property
    def bytes(self) -> int:
        """Bytes of the distinct storages that are kept for backward at this moment."""
        return self._bytes(self._kept)

    @property
    def bytes_of_layers(self) -> int:
        """Of these, the bytes of the storages that a forward of `layers` saved."""
        return self._bytes(kept for kept in self._kept if kept.by_layer)

    def _bytes(self, kept: Iterable[_Kept]) -> int:
        storages = [one.tensor.untyped_storage() for one in kept]
        sizes = {s.data_ptr(): s.nbytes() for s in storages}
        return sum(size for at, size in sizes.items() if at not in self._weights)

    def __enter__(self) -> Self:
        for layer in self._layers:
            self._undo += [
                layer.register_forward_pre_hook(lambda *_: self._step(1)).remove,
                layer.register_forward_hook(lambda *_: self._step(-1), always_call=True).remove,
            ]
        self._hooks.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.__exit__()
        while self._undo:
            self._undo.pop()()

    def _step(self, by: int) -> None:
        self._depth += by

    def _pack(self, tensor: Tensor) -> _Kept:
        kept = _Kept(tensor.detach(), self._depth > 0)
        self._kept.add(kept)
        return kept


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class _Kept:
    """What autograd holds in place of a saved tensor: it is freed when autograd releases it.

    The tensor is detached: one that knew its graph would keep itself alive.
    """

    tensor: Tensor
    by_layer: bool


def _storage(tensor: Tensor) -> Any:
    """What holds the bytes: oneDNN's packed weights have no storage and hold them themselves."""
    return tensor if tensor.is_mkldnn else tensor.untyped_storage()


def _size(tensor: Tensor) -> int:
    if tensor.is_mkldnn:
        return tensor.numel() * tensor.element_size()
    return tensor.untyped_storage().nbytes()


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
