"""PEFT's types of adapters: a learning rate, the layers they are for, sizes that must fit layers.

PEFT's defaults are for wide models: a size that a layer does not have fails late, or deep inside.
What is computed here is the default's nearest that fits; keys that a user sets are left alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from transformers.pytorch_utils import Conv1D

Places = Literal["linear", "norms", "rescaled", "table", "own", "none"]
"""What `target_modules: auto` means: linear layers of the blocks, every norm, what IA3 rescales,
the token embeddings, what PEFT chooses itself, or nothing (virtual tokens)."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """In- and out-features of the layers that get an adapter, and the model's number of blocks."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    blocks: int

    @classmethod
    def of(cls, layers: Sequence[nn.Module], blocks: int) -> Sizes:
        """Of linear layers, GPT-2's `Conv1D` among them; others have no such sizes."""
        pairs = [_features(layer) for layer in layers if isinstance(layer, nn.Linear | Conv1D)]
        return cls(tuple(i for i, _ in pairs), tuple(o for _, o in pairs), blocks)

    def divisor(self, most: int, *, even: bool = False, outputs_only: bool = False) -> int:
        """The largest number up to `most` that divides every size."""
        common = math.gcd(*self.outputs, *(() if outputs_only else self.inputs))
        fits = (n for n in range(min(most, common), 0, -1) if common % n == 0)
        return next((n for n in fits if not even or n % 2 == 0), 2 if even else 1)

    def smallest(self, measure: Callable[[int, int], int], most: int) -> int:
        """The least of a measure of in- and out-features over the layers, up to `most`."""
        return max(1, min(most, *map(measure, self.inputs, self.outputs)))


def _features(layer: nn.Module) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    inputs, outputs = layer.weight.shape  # type: ignore[misc]
    return int(inputs), int(outputs)


Supply = Callable[[Sizes], Mapping[str, Any]]


def _nothing(sizes: Sizes) -> Mapping[str, Any]:
    return {}


def _boft(sizes: Sizes) -> Mapping[str, Any]:
    common = math.gcd(*sizes.inputs)
    return {"boft_block_size": 4 if common % 4 == 0 else 2}


def _oft(sizes: Sizes) -> Mapping[str, Any]:
    common = math.gcd(*sizes.inputs)
    return {"oft_block_size": next(n for n in range(32, 0, -1) if common % n == 0)}


@dataclass(frozen=True, slots=True)
class AdapterType:
    """`learning_rate` is for a width of 32, see `learning_rate`; `supply` gives values of keys.

    `reads_weights`: its tensors are computed from the base's weights, which must be there.
    `instead`: keys of which one set by the user makes up for all that is supplied.
    """

    learning_rate: float
    places: Places = "linear"
    supply: Supply = _nothing
    reads_weights: bool = False
    instead: frozenset[str] = frozenset()


_VIRTUAL: Mapping[str, float] = {
    "PROMPT_TUNING": 0.3, "P_TUNING": 0.01, "PREFIX_TUNING": 0.3, "CARTRIDGE": 0.3,
}  # fmt: skip

PROMPTS = frozenset({"PROMPT_TUNING", "P_TUNING"})
"""Types whose virtual tokens stand before the row's, in the logits too."""

CACHES = frozenset({"PREFIX_TUNING", "CARTRIDGE"})
"""Types whose virtual tokens are keys and values in a cache."""

ADAPTER_TYPES: Mapping[str, AdapterType] = {
    **{name: AdapterType(rate, "none") for name, rate in _VIRTUAL.items()},
    "ADALORA": AdapterType(0.05),
    "ADAMSS": AdapterType(0.03, reads_weights=True),
    "ADAPTION_PROMPT": AdapterType(
        0.3, "own", lambda sizes: {"adapter_len": 10, "adapter_layers": sizes.blocks}
    ),
    "BEFT": AdapterType(0.1),
    "BOFT": AdapterType(0.03, supply=_boft, instead=frozenset({"boft_block_num"})),
    "C3A": AdapterType(0.3, supply=lambda sizes: {"block_size": sizes.divisor(256)}),
    "DEFT": AdapterType(0.01, reads_weights=True),
    "DELORA": AdapterType(0.005, reads_weights=True),
    "FOURIERFT": AdapterType(
        0.05, supply=lambda sizes: {"n_frequency": sizes.smallest(lambda i, o: i * o, 1000)}
    ),
    "FROD": AdapterType(0.05, supply=lambda _: {"progressbar": False}, reads_weights=True),
    "GLORA": AdapterType(0.01),
    "GRALORA": AdapterType(
        0.005, supply=lambda sizes: {"gralora_k": 2 if sizes.divisor(2) == 2 else 1}
    ),
    "HIRA": AdapterType(0.02),
    "HRA": AdapterType(0.01),
    "IA3": AdapterType(0.5, "rescaled"),
    "LILY": AdapterType(0.01),
    "LN_TUNING": AdapterType(0.1, "norms"),
    "LOHA": AdapterType(0.05),
    "LOKR": AdapterType(0.05),
    "MISS": AdapterType(
        0.005, supply=lambda sizes: {"r": sizes.smallest(lambda i, o: min(i, o), 64)}
    ),
    "OFT": AdapterType(0.003, supply=_oft, instead=frozenset({"r"})),
    "OSF": AdapterType(0.005, reads_weights=True),
    "PEANUT": AdapterType(0.01),
    "PSOFT": AdapterType(
        0.01,
        supply=lambda sizes: {"r": sizes.smallest(lambda i, o: min(i, o), 32)},
        reads_weights=True,
    ),
    "PVERA": AdapterType(0.1),
    "RANDLORA": AdapterType(0.005),
    "ROAD": AdapterType(
        0.1,
        supply=lambda sizes: {"group_size": sizes.divisor(64, even=True, outputs_only=True)},
    ),
    "SHADOW": AdapterType(0.03, "own"),
    "SHIRA": AdapterType(
        0.01,
        supply=lambda sizes: {"r": sizes.smallest(lambda i, o: i * o // (i + o), 32)},
        reads_weights=True,
    ),
    "SUPERTUNING": AdapterType(0.3, reads_weights=True),
    "TINYLORA": AdapterType(0.02, reads_weights=True),
    "TRAINABLE_TOKENS": AdapterType(0.3, "table"),
    "UNILORA": AdapterType(0.2),
    "VBLORA": AdapterType(0.05, supply=lambda sizes: {"vector_length": sizes.divisor(256)}),
    "VERA": AdapterType(0.1),
    "WAVEFT": AdapterType(
        0.001, supply=lambda sizes: {"n_frequency": sizes.smallest(lambda i, o: i * o, 2592)}
    ),
}
"""By PEFT's name. One that a newer PEFT adds beside these is treated as `OTHER`."""

OTHER = AdapterType(0.005)

_WIDTH = 32
"""Features of the models on which the learning rates were measured, 20 steps of AdamW each."""


def learning_rate(peft_type: str, hidden_size: int) -> float:
    """A learning rate for a type on a model of this width.

    One is measured at a width of 32 and divided by the width's growth, as AdamW's steps on
    matrices should be: VeRA's 0.1 becomes 4e-3 at 768 and IA3's 0.5 becomes 4e-3 at 4,096, near
    what their authors use there.
    """
    row = ADAPTER_TYPES.get(peft_type, OTHER)
    return row.learning_rate * min(1.0, _WIDTH / hidden_size)
