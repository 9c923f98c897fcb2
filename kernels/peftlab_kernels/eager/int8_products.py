"""Integer products on a CPU, and the quantisation of their left operand by rows.

Three engines do the same work:

    int_mm    torch's product of int8 matrices: for CPUs with VNNI, a reference loop on others
    qlinear   oneDNN's product of uint8 and int8, through a private operator of torch's quantiser.
              Without VNNI it sums pairs of products in 16 bits, which saturate; activations
              therefore have 7 bits (codes -63 .. 63, stored as 1 .. 127), whose sums do not.
    fp32      the codes widened by blocks: as exact as int_mm, for where neither works

torch.compile cannot trace oneDNN's private operator: there qlinear's codes are multiplied as fp32
multiplies, to the same sums.

Sums are exact integers, except qlinear's above 2^24, which are rounded to fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from peftlab_kernels.eager import products
from peftlab_kernels.int8_format import LARGEST_CODE, Int8Rows, Int8Weight
from peftlab_kernels.row_blocks import cached_elements, row_blocks

Engine = Literal["int_mm", "qlinear", "fp32"]

ENGINES: tuple[Engine, ...] = ("int_mm", "qlinear", "fp32")

_ZERO_POINT = 64


def largest_code(engine: Engine) -> int:
    """The largest code that the engine's left operand may hold."""
    return 63 if engine == "qlinear" else LARGEST_CODE


def quantize_rows(x: Tensor, largest: int, factors: Tensor | None = None) -> Int8Rows:
    """`x [M, K]`, times `factors [K]` if given, as codes up to `largest` and a step for each row.

    A row with a NaN or an infinity has it as its step, so that the product shows it.
    """
    codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    steps = torch.zeros(x.shape[0], dtype=torch.float32, device=x.device)
    if not x.numel():
        return Int8Rows(codes, steps)
    for rows in row_blocks(x.shape[0], x.shape[1], cached_elements()):
        block = x[rows].float() if factors is None else x[rows] * factors
        magnitudes = block.abs().amax(dim=1)
        # A row of zeros has the step 0 and codes 0: any factor will do. Where the step is NaN or
        # infinite, any codes make the product so.
        usable = (magnitudes > 0) & magnitudes.isfinite()
        inverse = largest / torch.where(usable, magnitudes, torch.ones_like(magnitudes))
        codes[rows] = torch.mul(block, inverse.unsqueeze(1)).round_()
        steps[rows] = magnitudes / largest
    return Int8Rows(codes, steps)


def multiplier(engine: Engine, codes: Tensor, *, transposed: bool) -> Callable[[Tensor], Tensor]:
    """A function from int8 rows [m, K] to their product with `codes [N, K]`, transposed.

    `transposed`: from rows [m, N] to the product with `codes` as they are, [m, K]. int32 or fp32.
    The codes are packed once in the engine's layout, for as long as the function lives.
    """
    matrix = codes if transposed else codes.T
    if not codes.numel():  # oneDNN would divide by their number, and end the process
        return lambda rows: rows.new_zeros(rows.shape[0], matrix.shape[1], dtype=torch.int32)
    if engine == "int_mm":
        if codes.shape[1] == 1:  # one row with the strides of a column is read past its end
            matrix = matrix.reshape(-1).view(matrix.shape)
        return lambda rows: torch._int_mm(rows, matrix)
    if engine == "fp32" or torch.compiler.is_compiling():
        weight = Int8Weight(codes, codes.new_full(codes.shape[:1], LARGEST_CODE, dtype=torch.float))
        if transposed:
            return lambda rows: products.backward(rows.float(), weight, transposed=False)
        return lambda rows: products.forward(rows.float(), weight, None, transposed=False)
    return _qlinear(matrix)


def _qlinear(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    # A transposed view is packed wrongly, silently.
    packed = torch.ops.onednn.qlinear_prepack(matrix.T.contiguous(), None)
    out_features = matrix.shape[1]
    ones = torch.ones(out_features)
    zeros = torch.zeros(out_features, dtype=torch.int32)

    def multiply(rows: Tensor) -> Tensor:
        shifted = (rows + _ZERO_POINT).view(torch.uint8)
        product: Any = torch.ops.onednn.qlinear_pointwise(
            shifted, 1.0, _ZERO_POINT, packed, ones, zeros,
            None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return product  # type: ignore[no-any-return]

    return multiply
