"""Tile shapes per target that compile without spills, and the choice among them by shape.

`python -m benchmarks.compile_gate` compiles and checks every entry for its target. Only sm_90's
entries for rank 16 were chosen by measured time (`benchmarks.gpu.sweep` on an H200); where several
entries compile well, a model of the waves they take decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    """Of one target and one activation width. Side passes are keyed by ranks at a time."""

    product: tuple[Tile, ...]
    """For a weight whose summed dimension is contiguous, as Linear's is for y."""
    product_transposed: tuple[Tile, ...]
    """For one whose other dimension is contiguous, as Linear's is for dx."""
    product_dropout: tuple[Tile, ...]
    product_ragged: Tile
    """For rows that do not start at multiples of 16 elements: loaded element by element."""
    rank_chunk: int
    l2_cost: int
    """The cost of loading a row or column of a tile, in the time of this many result elements."""
    down: Mapping[int, Strip]
    down_dropout: Mapping[int, Strip]
    dy_pass: Mapping[int, Strip]
    """Only ranks where one reading of a regular dy is cheaper than two; see `lora_backward`."""
    cross: Mapping[int, Strip]
    cross_dropout: Mapping[int, Strip]
    ranks_first: bool
    add_masked: Strip


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of GPU, as the tables name it, and the number of processors of this one."""

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
    """Ranks that one program of a side pass holds; more are divided among programs."""
    return min(padded, max(strips))


def regular(matrix: torch.Tensor, unit: int = 16) -> bool:
    """Whether its rows start at 16-byte addresses and multiples of `unit` elements.

    Others are loaded element by element: Triton only knows whether 16 divides a size.
    """
    return regular_strides(matrix.stride(), unit) and matrix.data_ptr() % 16 == 0


def regular_strides(strides: Sequence[int], unit: int = 16) -> bool:
    """The same for strides alone."""
    return max(strides) % unit == 0


def choose_tile(tiles: tuple[Tile, ...], target: Target, l2_cost: int, m: int, n: int) -> Tile:
    """The tile with the shortest waves, each as long as its arithmetic or its loads from L2."""

    def cost(tile: Tile) -> int:
        waves = -(-(-(-m // tile.m) * -(-n // tile.n)) // target.processors)
        return waves * max(tile.m * tile.n, l2_cost * (tile.m + tile.n))

    return min(tiles, key=cost)


_AMPERE = Configurations(
    product=(
        Tile(128, 256, 32, 8, 4),
        Tile(128, 128, 32, 4, 4),
        Tile(64, 128, 64, 4, 4),
    ),
    product_transposed=(
        Tile(128, 256, 32, 8, 4),
        Tile(128, 128, 32, 4, 4),
        Tile(64, 128, 64, 4, 4),
    ),
    product_dropout=(Tile(128, 128, 64, 8, 3), Tile(64, 128, 64, 4, 4)),
    product_ragged=Tile(64, 64, 32, 8, 2),
    rank_chunk=32,
    l2_cost=43,
    down={
        16: Strip(64, 128, 4, 3),
        32: Strip(64, 64, 8, 3),
        64: Strip(64, 64, 8, 3),
        128: Strip(64, 32, 8, 3),
    },
    down_dropout={
        16: Strip(64, 64, 4, 3),
        32: Strip(64, 64, 4, 3),
        64: Strip(64, 64, 8, 3),
        128: Strip(64, 32, 8, 3),
    },
    dy_pass={16: Strip(64, 256, 8, 3), 32: Strip(64, 256, 8, 3)},
    cross={
        16: Strip(64, 128, 4, 3),
        32: Strip(64, 128, 8, 3),
        64: Strip(64, 128, 8, 3),
        128: Strip(64, 64, 8, 3),
    },
    cross_dropout={
        16: Strip(32, 128, 4, 3),
        32: Strip(32, 128, 4, 3),
        64: Strip(64, 128, 8, 3),
        128: Strip(32, 128, 8, 3),
    },
    ranks_first=True,
    add_masked=Strip(64, 128, 4, 2),
)

# 99 KiB of shared memory a program, and tensor cores slow enough that L2 keeps up.
_SMALL_SHARED = replace(
    _AMPERE,
    product=(
        Tile(128, 256, 32, 8, 4),
        Tile(128, 128, 32, 4, 4),
        Tile(64, 128, 32, 4, 4),
    ),
    product_transposed=(
        Tile(128, 256, 32, 8, 4),
        Tile(128, 128, 32, 4, 4),
        Tile(64, 128, 32, 4, 4),
    ),
    product_dropout=(Tile(128, 128, 64, 8, 3), Tile(64, 128, 32, 4, 4)),
    l2_cost=16,
)

_HOPPER = Configurations(
    product=(Tile(128, 128, 64, 4, 4, tma=True), Tile(64, 128, 64, 4, 4, tma=True)),
    product_transposed=(
        Tile(256, 128, 64, 8, 4, tma=True),
        Tile(128, 128, 64, 8, 3, tma=True),
        Tile(64, 128, 64, 4, 4, tma=True),
    ),
    product_dropout=(
        Tile(128, 256, 64, 8, 3, tma=True),
        Tile(128, 128, 64, 8, 3, tma=True),
        Tile(64, 128, 64, 4, 4, tma=True),
    ),
    product_ragged=Tile(64, 64, 32, 8, 2),
    rank_chunk=64,
    l2_cost=108,
    down={
        16: Strip(64, 128, 4, 3),
        32: Strip(64, 64, 4, 3),
        64: Strip(128, 64, 8, 3),
        128: Strip(128, 64, 8, 3),
    },
    down_dropout={
        16: Strip(64, 64, 4, 3),
        32: Strip(64, 64, 4, 3),
        64: Strip(64, 64, 8, 3),
        128: Strip(64, 64, 8, 3),
    },
    dy_pass={16: Strip(32, 256, 4, 4), 32: Strip(64, 256, 8, 3)},
    cross={
        16: Strip(64, 128, 4, 3),
        32: Strip(64, 128, 4, 3),
        64: Strip(64, 128, 8, 3),
        128: Strip(64, 128, 8, 3),
    },
    cross_dropout={
        16: Strip(32, 128, 4, 3),
        32: Strip(32, 128, 4, 3),
        64: Strip(64, 128, 8, 3),
        128: Strip(64, 128, 8, 3),
    },
    ranks_first=False,
    add_masked=Strip(64, 64, 4, 2),
)

# fp32 proper has no tensor cores anywhere; one table serves all.
_FP32 = Configurations(
    product=(Tile(128, 128, 16, 8, 3), Tile(64, 64, 32, 4, 3)),
    product_transposed=(Tile(128, 128, 16, 8, 3), Tile(64, 64, 32, 4, 3)),
    product_dropout=(Tile(128, 128, 16, 8, 3), Tile(64, 64, 32, 4, 3)),
    product_ragged=Tile(64, 64, 16, 4, 2),
    rank_chunk=16,
    l2_cost=0,
    down={16: Strip(32, 32, 4, 3), 32: Strip(32, 32, 4, 3), 64: Strip(32, 32, 4, 3)},
    down_dropout={16: Strip(32, 32, 4, 3), 32: Strip(32, 32, 4, 3), 64: Strip(64, 32, 8, 3)},
    dy_pass={16: Strip(32, 128, 8, 3)},
    cross={16: Strip(32, 64, 8, 3), 32: Strip(32, 64, 8, 3), 64: Strip(32, 64, 8, 3)},
    cross_dropout={16: Strip(32, 64, 8, 3), 32: Strip(32, 64, 8, 3), 64: Strip(32, 64, 8, 3)},
    ranks_first=False,
    add_masked=Strip(64, 64, 4, 2),
)

# Small enough that the awkward shapes of tests take several programs each way.
_INTERPRETER = replace(
    _FP32,
    product=(Tile(32, 64, 32, 4, 1),),
    product_transposed=(Tile(32, 64, 32, 4, 1),),
    product_dropout=(Tile(32, 64, 32, 4, 1),),
    product_ragged=Tile(32, 64, 32, 4, 1),
    down={16: Strip(32, 32, 4, 1), 32: Strip(32, 32, 4, 1)},
    down_dropout={16: Strip(32, 32, 4, 1), 32: Strip(32, 32, 4, 1)},
    dy_pass={16: Strip(16, 64, 4, 1)},
    cross={16: Strip(16, 64, 4, 1), 32: Strip(16, 64, 4, 1)},
    cross_dropout={16: Strip(16, 64, 4, 1), 32: Strip(16, 64, 4, 1)},
    add_masked=Strip(32, 64, 4, 1),
)

_WIDE = dict.fromkeys(("sm_80", "sm_86", "sm_90", "sm_120"), _FP32)
_WIDE["interpreter"] = _INTERPRETER

_NARROW = {
    "sm_80": _AMPERE,
    "sm_86": _SMALL_SHARED,
    "sm_90": _HOPPER,
    "sm_120": _SMALL_SHARED,
    "interpreter": _INTERPRETER,
}
