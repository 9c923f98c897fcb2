"""A trained part, the model it belongs to, and its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from peftlab.export.changes import Changes


@dataclass(frozen=True, slots=True)
class Source:
    """A trained part, the model it belongs to, and its files.

    `auto_class` and `config` are those of its head, `auto_class` None for the base's own;
    `quantised` returns the linear layers that were in 8 bits, given the model on meta, and
    `requantise` writes them in 8 bits again; `through` is a dtype that weights were rounded to
    before quantisation; `tokenizer` is a folder with one; `stops` are ids at which the model learnt
    to stop, beside those of its base, and `generation` its other settings of generation. `replay`
    is called with the model as it was trained, in fp32, and raises where it differs. `compared` is
    how the form of its base was chosen.
    """

    changes: Changes
    base: str
    revision: str | None = None
    auto_class: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    quantised: Callable[[torch.nn.Module], tuple[str, ...]] | None = None
    requantise: bool = False
    through: torch.dtype | None = None
    tokenizer: Path | None = None
    stops: tuple[int, ...] = ()
    generation: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    compared: Mapping[str, Any] = field(default_factory=dict)
    replay: Callable[[torch.nn.Module], None] | None = None
