"""What of a model trains, as a table: one row for all layers of one place and kind."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import nn

from peftlab.methods.adapter_files import OWN_NAMES
from peftlab.model.quantized import scalars

How = Literal["adapter", "full", "partly", "frozen"]

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_ADAPTER = re.compile(
    rf"\.((?:{'|'.join(OWN_NAMES)})\w*|token_adapter\.trainable_tokens_\w+)(\.|$)"
    r"|(?<=^prompt_encoder)\."
)
_WRAPPING = re.compile(
    r"^base_model\.model\.|\.(token_adapter\.base_layer|token_adapter|base_layer|original_module)"
    r"(?=\.|$)"
)
_SAVED = re.compile(r"\.modules_to_save\.[^.]+")


@dataclass(frozen=True, slots=True)
class CoverageRow:
    """Layers whose names differ in block numbers only. Parameters are numbers of scalars.

    `pattern` writes the block's number as `*`; `how`: adapter (frozen, with a trained adapter on
    it), full, partly (some of its modules), or frozen.
    """

    pattern: str
    kind: str
    modules: int
    parameters: int
    trained: int
    how: How


@dataclass(frozen=True, slots=True)
class Coverage:
    """The rows in the model's order, with totals. Shared parameters count once."""

    rows: tuple[CoverageRow, ...]
    parameters: int
    trained: int

    @property
    def share(self) -> float:
        """The trained share of all parameters, between 0 and 1."""
        return self.trained / self.parameters

    def to_json(self) -> dict[str, Any]:
        """Rows and totals in JSON values."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "totals": {
                "parameters": self.parameters,
                "trained": self.trained,
                "share": self.share,
            },
        }


@dataclass(slots=True)
class _Tally:
    kind: str
    modules: set[str]
    trained_modules: set[str]
    parameters: int = 0
    trained: int = 0
    adapter: bool = False


def cover(model: nn.Module) -> Coverage:
    """Count what trains now, by `requires_grad`."""
    tallies: dict[str, _Tally] = {}
    kinds = {_original(name): _kind(module) for name, module in _innermost(model)}
    for name, parameter in model.named_parameters():
        owner = name.rpartition(".")[0]
        adapter = _ADAPTER.search(name)
        module = _original(owner[: adapter.start()] if adapter else owner)
        tally = tallies.setdefault(
            _NUMBER.sub("*", module), _Tally(kinds.get(module, ""), set(), set())
        )
        tally.modules.add(module)
        tally.parameters += scalars(parameter)
        if parameter.requires_grad:
            tally.trained += parameter.numel()
            tally.trained_modules.add(module)
            tally.adapter |= adapter is not None
    rows = tuple(
        CoverageRow(pattern, t.kind, len(t.modules), t.parameters, t.trained, _how(t))
        for pattern, t in tallies.items()
    )
    return Coverage(rows, sum(r.parameters for r in rows), sum(r.trained for r in rows))


def _how(tally: _Tally) -> How:
    if not tally.trained:
        return "frozen"
    if tally.trained_modules != tally.modules:
        return "partly"
    return "adapter" if tally.adapter else "full"


def _original(name: str) -> str:
    """A module's name in the model before PEFT wrapped it."""
    return _SAVED.sub("", _WRAPPING.sub("", name))


def _innermost(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules such that a wrapped layer comes after its wrapper, and so names the kind."""
    return (
        (name, module)
        for name, module in model.named_modules()
        if not _ADAPTER.search(name) and not _SAVED.search(name)
    )


def _kind(module: nn.Module) -> str:
    return type(module).__name__
