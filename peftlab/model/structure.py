"""The parts of a model, by its structure: its blocks, its head, the modules after the blocks.

No model family is treated by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from peftlab.errors import CheckFailed

_FRESH = "_peftlab_fresh_parameters"
_COMPANION = 0.2
"""A second stack (an encoder beside its decoder) has at least this share of the first's size."""


@dataclass(frozen=True, slots=True)
class BlockList:
    """A stack of transformer blocks: the dotted name of its `ModuleList`, and how many it holds."""

    name: str
    count: int

    def block(self, index: int) -> str:
        return f"{self.name}.{index}"

    def holds(self, name: str) -> bool:
        """Whether a module or parameter of that name is inside the stack."""
        return name.startswith(f"{self.name}.")

    def lies_in(self, module: str) -> bool:
        """Whether the stack is the named module or inside it."""
        return self.name == module or self.name.startswith(f"{module}.")


def block_lists(model: nn.Module) -> tuple[BlockList, ...]:
    """The stacks of blocks in the order they run: one, or an encoder's and a decoder's.

    A stack is a `ModuleList` of equal-typed children, not inside another such list; the one with
    the most parameters, and any of comparable size. Raises `CheckFailed` where there is none.
    """
    stacks: list[tuple[str, nn.ModuleList, int]] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len({type(child) for child in module}) != 1:
            continue
        size = sum(p.numel() for p in module.parameters())
        if size and not any(name.startswith(f"{outer}.") for outer, _, _ in stacks):
            stacks.append((name, module, size))
    if not stacks:
        raise CheckFailed(
            f"{type(model).__name__} has no list of equal blocks; choose a transformer model."
        )
    _, largest, most = max(stacks, key=lambda entry: entry[2])
    return tuple(
        BlockList(name, len(module))
        for name, module, size in stacks
        if type(module[0]) is type(largest[0]) or size >= _COMPANION * most
    )


def head_modules(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules on top of the base: the task's head (classifier, lm_head, ...).

    These are the model's own children that hold parameters, but neither blocks nor the input
    embeddings. A tied lm_head is among them. A bare base has none but an lm_head beside its stacks.
    """
    embeddings = input_embeddings(model)
    output: nn.Module | None = model.get_output_embeddings()  # type: ignore[operator]
    stacks = block_lists(model)
    bare = getattr(model, "base_model", None) is model
    names = []
    for name, child in model.named_children():
        if bare and child is not output:
            continue
        modules = set(child.modules())
        holds_blocks = any(stack.lies_in(name) for stack in stacks)
        if holds_blocks or embeddings in modules:
            continue
        if next(child.parameters(), None) is not None:
            names.append(name)
    return tuple(names)


def base_modules(model: nn.Module) -> tuple[str, ...]:
    """Names of the model's own children with parameters that are not its head."""
    heads = head_modules(model)
    return tuple(
        name
        for name, child in model.named_children()
        if name not in heads and next(child.parameters(), None) is not None
    )


def input_embeddings(model: nn.Module) -> nn.Module:
    """The token embeddings."""
    embeddings: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
    return embeddings


def after_blocks(model: nn.Module) -> tuple[str, ...]:
    """Names of modules that run after the blocks, inside the base: final norms, a pooler.

    Decided by the order of registration in the modules that enclose the stacks; a norm named final
    counts at any position (OPT registers it before its blocks), and one of the embeddings never
    (BART registers it after the blocks).
    """
    names: list[str] = []
    inside_head = head_modules(model)
    stacks = block_lists(model)
    for stack in stacks:
        parts = stack.name.split(".")
        for depth in range(len(parts)):
            prefix = ".".join(parts[:depth])
            passed = False
            for child_name, child in model.get_submodule(prefix).named_children():
                full = f"{prefix}.{child_name}" if prefix else child_name
                if child_name == parts[depth]:
                    passed = True
                elif (
                    ((passed and "embed" not in child_name) or "final" in child_name)
                    and full not in inside_head
                    and full not in names
                    and next(child.parameters(), None) is not None
                    and not any(other.lies_in(full) for other in stacks)
                ):
                    names.append(full)
    return tuple(names)


def tied_parameters(model: nn.Module) -> Iterator[tuple[str, ...]]:
    """Groups of names under which the same parameter is registered."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return (tuple(names) for names in groups.values() if len(names) > 1)


def is_tied(model: nn.Module, module: str) -> bool:
    """Whether a module shares a parameter with another one (an lm_head with the embeddings)."""
    return any(
        any(name.startswith(f"{module}.") for name in group)
        and not all(name.startswith(f"{module}.") for name in group)
        for group in tied_parameters(model)
    )


def parameters_under(model: nn.Module, modules: Iterable[str]) -> frozenset[str]:
    """Names of the parameters in the named modules, as `named_parameters` lists them."""
    prefixes = tuple(f"{module}." for module in modules)
    return frozenset(name for name, _ in model.named_parameters() if name.startswith(prefixes))


def mark_fresh(model: nn.Module, names: Iterable[str]) -> None:
    """Record the parameters that are not in the checkpoint: they must be trained."""
    setattr(model, _FRESH, tuple(sorted(names)))


def fresh_parameters(model: nn.Module) -> tuple[str, ...]:
    """Sorted names of the parameters that are not in the checkpoint."""
    return tuple(map(str, getattr(model, _FRESH, ())))


def fresh_modules(model: nn.Module) -> tuple[str, ...]:
    """Sorted names of the modules with own parameters that are not in the checkpoint."""
    names = fresh_parameters(model)
    return tuple(sorted({str(name).rpartition(".")[0] for name in names}))


def logits_of(outputs: Any) -> torch.Tensor:
    """A model's logits; of a span model [B, T, 2], those of the first and last tokens.

    Of other outputs the first.
    """
    if isinstance(outputs, tuple):
        return torch.as_tensor(outputs[0])
    if "start_logits" in outputs:
        return torch.stack([outputs["start_logits"], outputs["end_logits"]], dim=-1)
    return torch.as_tensor(next(iter(outputs.values())))
