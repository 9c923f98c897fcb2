"""8-bit weights as bitsandbytes stores them: rows of int8 codes and each row's largest magnitude.

    W [N, K] ~ codes [N, K] * scales [N] / 127        scales = max |W| along each row

The codes are its `CB`, the scales its `SCB`; both are bit-identical, since the weight is rounded to
fp16 first, as bitsandbytes does. Dettmers et al. 2022, arXiv:2208.07339.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from peftlab_kernels.row_blocks import row_blocks

LARGEST_CODE = 127


class Int8Weight(NamedTuple):
    """A frozen weight [N, K] stored in 8 bits: int8 codes [N, K], fp32 scales [N]."""

    codes: Tensor
    scales: Tensor


class Int8Rows(NamedTuple):
    """Activations [M, K] in 8 bits: `codes * steps`, int8 codes [M, K] and fp32 steps [M].

    A step is the row's largest magnitude divided by the largest code, so that it does not depend on
    the range of codes that the arithmetic supports.
    """

    codes: Tensor
    steps: Tensor


def int8_quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise `weight [N, K]`, any float dtype, by rows: int8 codes [N, K] and fp32 scales [N].

    Works on a block of rows at a time, so that little memory beyond the codes is needed.

    Raises:
        ValueError: a row that fp16 cannot hold: it has a NaN or an infinity, a value above 65,504,
            or nothing but values that round to zero.
    """
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(
            f"weight is {weight.dtype} of shape {tuple(weight.shape)}; only a floating matrix is "
            "quantised by rows"
        )
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scales = torch.zeros(weight.shape[0], dtype=torch.float32, device=weight.device)
    if not weight.numel():
        return codes, scales
    for rows in row_blocks(*weight.shape):
        block = weight[rows].detach()
        half = block.half().float()
        largest = half.abs().amax(dim=1)
        _refuse_lost_rows(block, largest, first=rows.start)
        # A row of zeros has the scale 0 and codes 0: any factor will do.
        factor = LARGEST_CODE / torch.where(largest == 0, torch.ones_like(largest), largest)
        codes[rows] = half.mul_(factor.unsqueeze(1)).round_()
        scales[rows] = largest
    return codes, scales


def int8_dequantize(codes: Tensor, scales: Tensor, out: Tensor) -> Tensor:
    """Dequantise `codes [N, K]` with `scales [N]` into `out [N, K]`, any float dtype.

    The product is rounded once, to out's dtype; every device gives the same bits.
    """
    wide = out.dtype if out.dtype.itemsize >= 4 else torch.float32
    # By a tensor: on CUDA torch divides by a scalar through its rounded reciprocal.
    factors = scales.to(wide) / torch.full_like(scales, LARGEST_CODE, dtype=wide)
    if out.dtype.itemsize >= 4:
        return out.copy_(codes).mul_(factors.unsqueeze(1))
    return out.copy_(codes.float().mul_(factors.unsqueeze(1)))


def _refuse_lost_rows(block: Tensor, largest: Tensor, *, first: int) -> None:
    """Raise `ValueError` for the first row that fp16 cannot hold."""
    lost, empty = ~largest.isfinite(), (largest == 0).nonzero().flatten()
    if len(empty):  # rows of zeros, or rounded to zeros; checking every row would be slow
        lost[empty] = (block[empty] != 0).any(dim=1)
    if not lost.any():
        return
    row = int(lost.nonzero()[0])
    value = float(block[row].abs().max())
    if value != value or value == float("inf"):
        what = f"it holds {value}"
    elif value > torch.finfo(torch.float16).max:
        what = f"its largest magnitude is {value:g}, above fp16's 65,504"
    else:
        what = f"its largest magnitude is {value:g}, which fp16 rounds to zero"
    count = int(lost.sum())
    raise ValueError(
        f"row {first + row} of the weight cannot be quantised to 8 bits: {what}"
        f"{f' ({count} such rows in this block)' if count > 1 else ''}; keep this layer in 16 bits"
    )
