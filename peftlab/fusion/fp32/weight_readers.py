"""Which modules' weights are read outside the module itself.

T5's feed-forward block brings its input to `self.wo.weight.dtype` before it calls `wo`; DeBERTa
takes its relative embeddings as a matrix; PEFT's trainable tokens look up in a patched copy of the
table. What such a reader does with the dtype is unknown, so the weight itself must have the wanted
one. Readers are detected in the bytecode that a module's `forward` reaches, for any model.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType

from torch import nn

_WITHOUT_DTYPE = frozenset({"device", "shape", "size", "is_meta", "requires_grad", "data_ptr"})
"""Attributes of a weight that do not reveal its dtype."""


def weights_read_outside(model: nn.Module) -> dict[nn.Module, str]:
    """Modules below `model` whose `weight` another one's forward reads, and that one's class."""
    kinds = {type(module) for module in model.modules()}
    paths = {kind: _paths_read(kind) for kind in kinds}
    readers: dict[nn.Module, str] = {}
    for reader in model.modules():
        for path in paths[type(reader)]:
            target: nn.Module | None = reader
            for part in path:
                target = None if target is None else target._modules.get(part)
            for owner in _owners(target):
                readers.setdefault(owner, type(reader).__name__)
    return readers


def _owners(module: nn.Module | None) -> Iterator[nn.Module]:
    """The modules behind `module.weight`: itself, or those that PEFT's wrapper holds."""
    if module is None or "weight" in module._parameters:
        yield from () if module is None else (module,)
        return
    for part, child in module._modules.items():
        if part == "modules_to_save" and child is not None:
            yield from (owner for copy in child.children() for owner in _owners(copy))
        elif part in {"base_layer", "original_module"}:
            yield from _owners(child)


def _paths_read(kind: type[nn.Module]) -> frozenset[tuple[str, ...]]:
    """Paths such as ("wo",) for which the class's forward, or what it calls, reads `.weight`."""
    paths: set[tuple[str, ...]] = set()
    waiting, seen = ["forward"], set()
    while waiting:
        name = waiting.pop()
        function = inspect.unwrap(getattr(kind, name, None) or _nothing)
        if name in seen or not isinstance(function, FunctionType):
            continue
        seen.add(name)
        if function.__module__.startswith("torch.nn."):
            continue
        for code in _codes(function.__code__):
            paths.update(_weight_paths(code))
            waiting.extend(code.co_names)
    return frozenset(paths)


def _weight_paths(code: CodeType) -> Iterator[tuple[str, ...]]:
    """Runs of attribute loads `a.b.weight` in a code object, as ("a", "b")."""
    chain: list[str] = []
    for instruction in dis.get_instructions(code):
        if instruction.opname in {"LOAD_ATTR", "LOAD_METHOD"}:
            chain.append(str(instruction.argval))
            continue
        if instruction.opname in {"CACHE", "NOP", "EXTENDED_ARG"}:
            continue
        yield from _path_of(chain)
        chain = []
    yield from _path_of(chain)


def _path_of(chain: list[str]) -> Iterator[tuple[str, ...]]:
    if "weight" in chain[1:]:
        end = chain.index("weight", 1)
        if not _WITHOUT_DTYPE.intersection(chain[end + 1 : end + 2]):
            yield tuple(chain[:end])


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code and that of the functions defined inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _nothing() -> None:
    """In the place of a name that is not a method."""
