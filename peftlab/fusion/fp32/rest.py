"""The dtype that a widened tensor had, kept on its module: copied, pickled and moved with it.

A tied tensor has one record under all its names, and is one tensor in a saved state dict too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

_RESTS = "_peftlab_rests"
_HANDLES = "_peftlab_rest_hooks"


class Rest:
    """The dtype that a widened tensor had, and why it was widened."""

    __slots__ = ("_latest", "dtype", "reason")

    def __init__(self, dtype: torch.dtype, reason: str) -> None:
        self.dtype = dtype
        self.reason = reason
        self._latest: tuple[ref[Mapping[str, Tensor]], str] | None = None

    def __reduce__(self) -> tuple[type[Rest], tuple[torch.dtype, str]]:
        return Rest, (self.dtype, self.reason)

    def narrowed(self, tensor: Tensor, state_dict: Mapping[str, Tensor], key: str) -> Tensor:
        """The tensor in its dtype at rest; within one state dict the same for all its names."""
        if self._latest is not None:
            latest, first = self._latest
            if latest() is state_dict and first in state_dict:
                return state_dict[first]
        try:
            self._latest = ref(state_dict), key
        except TypeError:  # the caller's own dict, which no weak reference can name
            self._latest = None
        return tensor.to(self.dtype)


def rests_of(module: nn.Module) -> dict[str, tuple[Tensor, Rest]]:
    """A module's widened tensors and their records, by their names in the module."""
    rests: dict[str, tuple[Tensor, Rest]] = {}
    for name, rest in module.__dict__.get(_RESTS, {}).items():
        tensor = _tensor(module, name)
        if tensor is not None:
            rests[name] = tensor, rest
    return rests


def remember_rest(module: nn.Module, rests: Mapping[str, Rest]) -> None:
    """Record the dtypes that a module's tensors had, and save and load them in those."""
    if not rests:
        return
    if _RESTS not in module.__dict__:
        module.__dict__[_RESTS] = {}
        module.__dict__[_HANDLES] = (
            module.register_state_dict_post_hook(_save_as_it_rested),
            module.register_load_state_dict_pre_hook(_load_as_it_rested),
        )
    module.__dict__[_RESTS].update(rests)


def forget_rest(module: nn.Module) -> None:
    """Drop a module's record and its hooks."""
    module.__dict__.pop(_RESTS, None)
    for handle in module.__dict__.pop(_HANDLES, ()):
        handle.remove()


def _save_as_it_rested(
    module: nn.Module, state_dict: dict[str, Tensor], prefix: str, _metadata: Any
) -> None:
    """Narrow frozen tensors, which loses nothing. Trained ones are saved as they are."""
    for name, (tensor, rest) in rests_of(module).items():
        saved = state_dict.get(prefix + name)
        # With keep_vars the caller gets the model's own parameters.
        if saved is None or saved is tensor or tensor.requires_grad:
            continue
        state_dict[prefix + name] = rest.narrowed(saved, state_dict, prefix + name)


def _load_as_it_rested(
    module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_others: Any
) -> None:
    """Round as loading before widening would have, then widen; `assign=True` needs this most."""
    for name, (tensor, rest) in rests_of(module).items():
        given = state_dict.get(prefix + name)
        if isinstance(given, Tensor) and given.is_floating_point():
            rounded = given if tensor.requires_grad else given.to(rest.dtype)
            state_dict[prefix + name] = rounded.float()


def _tensor(module: nn.Module, name: str) -> Tensor | None:
    if name in module._parameters:
        return module._parameters[name]
    return module._buffers.get(name)
