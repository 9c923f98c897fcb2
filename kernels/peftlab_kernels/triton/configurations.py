"""Tile shapes per target: what compiles without spills, and which of them a shape gets.

`python -m benchmarks.compile_gate` compiles every entry for its target and holds this table to
account. Nothing here was chosen by the clock: where two entries compile well, a model of the waves
they take decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch


@dataclass(frozen=True, slots=True)
class Tile:
    """A product's: M x N of the result, K at a time. `tma`: operands by tensor descriptors."""

    m: int
    n: int
    k: int
    warps: int
    stages: int
    tma: bool = False


@dataclass(frozen=True, slots=True)
class Strip:
    """A side pass's block of its one large operand, which it reads once."""

    rows: int
    columns: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class Configurations:
    """Of one target and one width of activations. Side passes are keyed by ranks at a time."""

    product: tuple[Tile, ...]
    product_dropout: tuple[Tile, ...]
    rank_chunk: int
    l2_cost: int
    """What a row or column of a tile costs to load, in elements of the result's time."""
    down: Mapping[int, Strip]
    down_dropout: Mapping[int, Strip]
    dy_pass: Mapping[int, Strip]
    x_pass: Mapping[int, Strip]
    x_pass_dropout: Mapping[int, Strip]
    ranks_first: bool
    add_masked: Strip


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of GPU, as the tables name it, and how many processors this one has."""

    name: str
    processors: int


def target_of(device: torch.device) -> Target:
    """The target of a CUDA device; a CPU's is the interpreter."""
    if device.type != "cuda":
        return Target("interpreter", 1)
    return _cuda_target(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _cuda_target(index: int) -> Target:
    properties = torch.cuda.get_device_properties(index)
    return Target(target_name(properties.major, properties.minor), properties.multi_processor_count)


def target_name(major: int, minor: int) -> str:
    """The nearest table of a compute capability: shared memory and instructions decide."""
    if (major, minor) == (9, 0):
        return "sm_90"
    if (major, minor) == (8, 0) or 10 <= major < 12:
        return "sm_80"
    return "sm_86" if major == 8 else "sm_120"


def configurations(target: Target, dtype: torch.dtype) -> Configurations:
    """The target's table for activations of this dtype."""
    return (_WIDE if dtype is torch.float32 else _NARROW)[target.name]


def padded_rank(rank: int) -> int:
    """Columns of h and g in memory: a power of two, at least the 16 of a tensor core's operand."""
    return max(16, 1 << (rank - 1).bit_length())


def ranks_at_a_time(padded: int, strips: Mapping[int, Strip]) -> int:
    """Ranks that one program of a side pass holds; more are shared among programs."""
    return min(padded, max(strips))


def choose_tile(tiles: tuple[Tile, ...], target: Target, l2_cost: int, m: int, n: int) -> Tile:
    """The tile whose waves take least: each as long as its arithmetic or its loads from L2."""

    def cost(tile: Tile) -> int:
        waves = -(-(-(-m // tile.m) * -(-n // tile.n)) // target.processors)
        return waves * max(tile.m * tile.n, l2_cost * (tile.m + tile.n))

    return min(tiles, key=cost)


_STRIPS = {16: Strip(64, 64, 4, 3), 32: Strip(64, 64, 4, 3), 64: Strip(64, 64, 4, 3)}

_NARROW = {
    "sm_80": Configurations(
        product=(
            Tile(128, 128, 32, 4, 4),
            Tile(128, 256, 64, 8, 3),
            Tile(128, 256, 32, 8, 4),
            Tile(64, 128, 64, 4, 4),
        ),
        product_dropout=(Tile(128, 128, 64, 8, 3),),
        rank_chunk=32,
        l2_cost=43,
        down=_STRIPS,
        down_dropout=_STRIPS,
        dy_pass=_STRIPS,
        x_pass=_STRIPS,
        x_pass_dropout=_STRIPS,
        ranks_first=True,
        add_masked=Strip(64, 128, 4, 2),
    ),
}
_NARROW["sm_86"] = _NARROW["sm_120"] = _NARROW["sm_80"]
_NARROW["sm_90"] = Configurations(
    product=(
        Tile(128, 256, 64, 8, 3, tma=True),
        Tile(128, 128, 64, 8, 4, tma=True),
        Tile(64, 256, 64, 4, 4, tma=True),
        Tile(128, 128, 64, 8, 3),
    ),
    product_dropout=(Tile(128, 256, 64, 8, 3, tma=True), Tile(128, 128, 64, 8, 3)),
    rank_chunk=128,
    l2_cost=108,
    down=_STRIPS,
    down_dropout=_STRIPS,
    dy_pass=_STRIPS,
    x_pass=_STRIPS,
    x_pass_dropout=_STRIPS,
    ranks_first=False,
    add_masked=Strip(64, 128, 4, 2),
)
_small = {16: Strip(16, 32, 4, 3), 32: Strip(16, 32, 4, 3)}
_WIDE = {
    "interpreter": Configurations(
        product=(Tile(32, 64, 32, 4, 1),),
        product_dropout=(Tile(32, 64, 32, 4, 1),),
        rank_chunk=32,
        l2_cost=0,
        down=_small,
        down_dropout=_small,
        dy_pass=_small,
        x_pass=_small,
        x_pass_dropout=_small,
        ranks_first=True,
        add_masked=Strip(16, 32, 4, 2),
    )
}
_NARROW["interpreter"] = _WIDE["interpreter"]
