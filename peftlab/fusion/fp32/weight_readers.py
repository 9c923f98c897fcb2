"""Which modules' weights are read by somebody else than the module itself.

T5's feed-forward block brings its input to `self.wo.weight.dtype` before it calls `wo`; DeBERTa
takes its relative embeddings as a matrix; PEFT's trainable tokens look up in a patched copy of the
table. What such a reader does with the dtype it finds cannot be known, so the weight must have the
dtype that is wanted. Found in the bytecode of what a module's `forward` reaches, for any model.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType

from torch import nn

_TELLS_NO_DTYPE = frozenset({"device", "shape", "size", "is_meta", "requires_grad", "data_ptr"})
"""Attributes of a weight that say nothing of its values' dtype."""


def weights_read_outside(model: nn.Module) -> dict[nn.Module, str]:
    """Modules below `model` whose `weight` another one's forward reads, and that one's class."""
    kinds = {type(module) for module in model.modules()}
    paths = {kind: _paths_read(kind) for kind in kinds}
    found: dict[nn.Module, str] = {}
    for reader in model.modules():
        for path in paths[type(reader)]:
            target: nn.Module | None = reader
            for part in path:
                target = None if target is None else target._modules.get(part)
            for owner in _owners(target):
                found.setdefault(owner, type(reader).__name__)
    return found


def _owners(module: nn.Module | None) -> Iterator[nn.Module]:
    """The modules that answer for `module.weight`: itself, or what PEFT's wrapper stands for."""
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
        if not _TELLS_NO_DTYPE.intersection(chain[end + 1 : end + 2]):
            yield tuple(chain[:end])


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code and that of the functions defined inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _nothing() -> None:
    """Stands for a name that is no method."""
