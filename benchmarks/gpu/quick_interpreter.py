"""Triton's interpreter without what it does again for every operation; its results are the same.

It builds a table of dtypes for every load and store, looks through `triton.language` at every call
of one kernel function by another, and checks and spells the shape of every intermediate: half of
the time that small kernels take. `remember()` keeps each answer instead.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any


def remember() -> None:
    """Replace the functions that repeat themselves, once; before kernels run."""
    import triton.language as tl
    from triton.runtime import interpreter

    if hasattr(interpreter._patch_lang, "__wrapped__"):
        return
    interpreter._get_np_dtype = _by_element(interpreter._get_np_dtype)
    _patch_once_a_launch(interpreter, tl)
    _keep_what_a_shape_gives(tl)


def _by_element(dtype_of: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A block's dtype is its element's, and a type's name says all about it."""
    known: dict[str, Any] = {}

    @wraps(dtype_of)
    def remembered(of: Any) -> Any:
        name = of.scalar.name
        if name not in known:
            known[name] = dtype_of(of)
        return known[name]

    return remembered


def _patch_once_a_launch(interpreter: Any, tl: Any) -> None:
    """`triton.language` is made to interpret when a launch begins; calls within find it so."""
    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched: set[tuple[bool, bool]] = set()

    @wraps(patch)
    def once(function: Any) -> Any:
        modules = [value for value in function.__globals__.values() if value in (tl, tl.core)]
        seen = (tl in modules, tl.core in modules)
        if seen in patched:
            return interpreter._LangPatchScope()
        patched.add(seen)
        return patch(function)

    @wraps(launch)
    def launched(self: Any, *args: Any, **kwargs: Any) -> Any:
        patched.clear()
        try:
            return launch(self, *args, **kwargs)
        finally:
            patched.clear()

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = once, launched


def _keep_what_a_shape_gives(tl: Any) -> None:
    """Attributes of a type by element and shape, and of a tensor by its type."""
    make_type, make_tensor = tl.core.block_type.__init__, tl.core.tensor.__init__
    types: dict[Any, dict[str, Any]] = {}
    tensors: dict[str, dict[str, Any]] = {}

    @wraps(make_type)
    def block_type(self: Any, element_ty: Any, shape: Any) -> None:
        key = (element_ty.name, *map(tl.core._unwrap_if_constexpr, shape))
        if (known := types.get(key)) is None:
            make_type(self, element_ty, shape)
            types[key] = dict(self.__dict__)
            return
        self.__dict__.update(known)
        self.element_ty = element_ty

    @wraps(make_tensor)
    def tensor(self: Any, handle: Any, type: Any) -> None:
        if (known := tensors.get(type.name)) is None:
            make_tensor(self, handle, type)
            tensors[type.name] = dict(self.__dict__) | {"handle": None}
            return
        self.__dict__.update(known)
        self.handle, self.type, self.dtype = handle, type, type.scalar

    tl.core.block_type.__init__, tl.core.tensor.__init__ = block_type, tensor
