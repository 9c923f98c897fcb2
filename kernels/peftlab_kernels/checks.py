"""Checks of the operators' arguments; errors name the value, the limit and the way out."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_RANK = 256


def check_weight(x: Tensor, weight: Tensor, *, transposed: bool) -> None:
    """Check a frozen floating weight against x. Raises `ValueError`, `TypeError`."""
    if weight.dim() != 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; it must be a matrix")
    _check_features(x, weight, transposed=transposed)
    if not x.is_floating_point() or not weight.is_floating_point():
        raise TypeError(f"x is {x.dtype} and weight {weight.dtype}; both must be floating")
    autocast = torch.is_autocast_enabled(x.device.type)
    if not autocast and x.dtype is not weight.dtype and _narrower(x.dtype, weight.dtype):
        raise TypeError(
            f"x is {x.dtype} and weight {weight.dtype}; cast x to {weight.dtype}, or the weight "
            f"to {x.dtype}, or use autocast"
        )
    if weight.requires_grad:
        raise ValueError("weight requires a gradient, but it is frozen here; set requires_grad")


def check_int8_weight(x: Tensor, codes: Tensor, scales: Tensor) -> None:
    """Check a weight in bitsandbytes' row format against x. Raises `ValueError`, `TypeError`."""
    if codes.dim() != 2 or scales.shape != codes.shape[:1]:
        raise ValueError(
            f"codes have shape {tuple(codes.shape)} and scales {tuple(scales.shape)}; they must be "
            "[N, K] and [N]"
        )
    if codes.dtype is not torch.int8 or scales.dtype is not torch.float32:
        raise TypeError(
            f"codes are {codes.dtype} and scales {scales.dtype}; int8_quantize makes int8 codes "
            "and float32 scales"
        )
    if not x.is_floating_point():
        raise TypeError(f"x is {x.dtype}; it must be floating")
    if scales.requires_grad:
        raise ValueError("scales require a gradient, but they are frozen; set requires_grad")
    _check_features(x, codes, transposed=False)


def check_adapter(
    in_features: int,
    out_features: int,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    bias: Tensor | None,
    lora_bias: Tensor | None,
    dropout: float,
) -> None:
    """Check an adapter, or none, against the weight. Raises `ValueError`, `TypeError`."""
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; it must lie in [0, 1)")
    for name, vector in (("bias", bias), ("lora_bias", lora_bias)):
        if vector is not None and vector.shape != (out_features,):
            raise ValueError(f"{name} has shape {tuple(vector.shape)}; it must be [{out_features}]")
    adapter = {"lora_a": lora_a, "lora_b": lora_b, "bias": bias, "lora_bias": lora_bias}
    for name, tensor in adapter.items():
        if tensor is not None and not tensor.is_floating_point():
            raise TypeError(f"{name} is {tensor.dtype}; it must be floating")
    if lora_a is None and lora_b is None:
        return
    if lora_a is None or lora_b is None:
        raise ValueError("lora_a and lora_b must be given together; one of them is None")
    rank = lora_a.shape[0] if lora_a.dim() else 0
    if lora_a.shape != (rank, in_features) or lora_b.shape != (out_features, rank):
        raise ValueError(
            f"lora_a has shape {tuple(lora_a.shape)} and lora_b {tuple(lora_b.shape)}; for "
            f"{in_features} in_features and {out_features} out_features they must be "
            f"[R, {in_features}] and [{out_features}, R]"
        )
    if not 1 <= rank <= LARGEST_RANK:
        raise ValueError(f"the rank is {rank}; it must lie in 1 .. {LARGEST_RANK}")


def _check_features(x: Tensor, weight: Tensor, *, transposed: bool) -> None:
    in_features = weight.shape[0 if transposed else 1]
    if x.dim() == 0 or x.shape[-1] != in_features:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, but weight {tuple(weight.shape)} has {in_features} "
            f"in_features{' (transposed)' if transposed else ''}; x must be [..., {in_features}]"
        )


def _narrower(x: torch.dtype, weight: torch.dtype) -> bool:
    """Whether x's dtype cannot hold every value of the weight's."""
    return torch.promote_types(x, weight) is not x
