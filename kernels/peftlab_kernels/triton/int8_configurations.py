"""Tile shapes of the kernels over 8-bit operands, per target, beside those in `configurations.py`.

`python -m benchmarks.compile_gate` checks this table as well. Only sm_90's products of bf16 were
chosen by measured time (`benchmarks.gpu.sweep` on an H200).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from peftlab_kernels.triton.configurations import Strip, Target, Tile

HIGH_RANK = 32


@dataclass(frozen=True, slots=True)
class Row:
    """The part of a row that a program quantises at a time."""

    columns: int
    warps: int


@dataclass(frozen=True, slots=True)
class Int8Configurations:
    """Of one target and one width of y."""

    product: tuple[Tile, ...]
    product_high_rank: tuple[Tile, ...]
    """For ranks above 32: on sm_120 wider tiles leave no registers for more than one chunk."""
    product_dropout: tuple[Tile, ...]
    product_ragged: Tile
    """For rows that do not start at multiples of 16 bytes: loaded byte by byte."""
    rank_chunk: int
    rows: tuple[Row, ...]
    """Ascending; a row wider than the last is read twice, in parts."""
    transpose: Strip
    dequantize: Strip

    def products(self, rank: int, *, dropout: bool) -> tuple[Tile, ...]:
        """The tiles for a call of this rank."""
        if dropout:
            return self.product_dropout
        return self.product_high_rank if rank > HIGH_RANK else self.product


def int8_configurations(target: Target, dtype: torch.dtype) -> Int8Configurations:
    """The target's table for a y, or dy, of this dtype."""
    return (_WIDE if dtype is torch.float32 else _NARROW)[target.name]


_PRODUCT = (Tile(128, 256, 64, 8, 4), Tile(128, 128, 64, 4, 4), Tile(64, 128, 128, 4, 4))

_AMPERE = Int8Configurations(
    product=_PRODUCT,
    product_high_rank=_PRODUCT,
    product_dropout=(Tile(128, 128, 128, 8, 3), Tile(64, 128, 128, 4, 3)),
    product_ragged=Tile(64, 64, 64, 8, 2),
    rank_chunk=32,
    rows=(Row(1024, 4), Row(2048, 4), Row(4096, 8), Row(8192, 8), Row(16384, 16)),
    transpose=Strip(128, 128, 8, 1),
    dequantize=Strip(16, 512, 8, 1),
)

_BLACKWELL = replace(_AMPERE, product_high_rank=(Tile(64, 128, 128, 4, 4),), rank_chunk=16)

_WGMMA = (
    Tile(256, 128, 128, 8, 4, tma=True),
    Tile(128, 128, 128, 8, 4, tma=True),
    Tile(64, 128, 128, 4, 4, tma=True),
)

_HOPPER = replace(
    _AMPERE,
    product=_WGMMA,
    product_high_rank=_WGMMA,
    product_dropout=(Tile(128, 128, 256, 8, 3, tma=True), Tile(64, 128, 128, 4, 4, tma=True)),
)

_INTERPRETER = replace(
    _AMPERE,
    product=(Tile(32, 64, 32, 4, 1),),
    product_high_rank=(Tile(32, 64, 32, 4, 1),),
    product_dropout=(Tile(32, 64, 32, 4, 1),),
    product_ragged=Tile(32, 64, 32, 4, 1),
    rank_chunk=16,
    rows=(Row(64, 4), Row(128, 4)),
    transpose=Strip(32, 64, 4, 1),
    dequantize=Strip(16, 64, 4, 1),
)

_NARROW = {
    "sm_80": _AMPERE,
    "sm_86": _AMPERE,
    "sm_90": _HOPPER,
    "sm_120": _BLACKWELL,
    "interpreter": _INTERPRETER,
}

_WIDE = {
    name: replace(
        table, dequantize=replace(table.dequantize, columns=table.dequantize.columns // 2)
    )
    for name, table in _NARROW.items()
}
# Only bf16 was timed on sm_90; the entries chosen there need a stack in fp32.
_WIDE["sm_90"] = replace(
    _WIDE["sm_90"],
    product=(Tile(128, 256, 128, 8, 3, tma=True), *_WGMMA[1:]),
    product_high_rank=(Tile(128, 256, 128, 8, 3, tma=True), *_WGMMA[1:]),
    product_dropout=(Tile(128, 128, 128, 8, 3, tma=True), Tile(64, 128, 128, 4, 4, tma=True)),
)
_WIDE["sm_120"] = replace(
    _WIDE["sm_120"],
    product_dropout=(Tile(64, 128, 128, 4, 3),),
    product_ragged=Tile(64, 32, 64, 4, 2),
)
