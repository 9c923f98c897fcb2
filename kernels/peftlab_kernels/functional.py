"""`lora_linear`, the operator as users call it: checks, flattens, and calls the Function."""

from __future__ import annotations

import torch
from torch import Tensor

from peftlab_kernels.autograd import LoraLinear

LARGEST_RANK = 256


def lora_linear(
    x: Tensor,
    weight: Tensor,
    lora_a: Tensor | None = None,
    lora_b: Tensor | None = None,
    *,
    scaling: float | Tensor = 1.0,
    bias: Tensor | None = None,
    lora_bias: Tensor | None = None,
    dropout: float = 0.0,
    transposed: bool = False,
) -> Tensor:
    """A frozen linear layer with a LoRA adapter: `x W^T + bias + scaling * dropout(x) A^T B^T`.

    Without an adapter (`lora_a` and `lora_b` None) it is the frozen layer alone.

    Args:
        x: `[..., K]`, any floating dtype. Under autocast it is brought to autocast's dtype.
        weight: `[N, K]`, or `[K, N]` if `transposed` (GPT-2's Conv1D). Frozen. Of x's dtype, or
            16-bit beside fp32 x: then it is widened block by block and the arithmetic is fp32.
        lora_a: `[R, K]`, R up to 256; any floating dtype. Its gradient has its dtype.
        lora_b: `[N, R]`, likewise.
        scaling: The adapter's factor; a tensor of one element may require a gradient.
        bias: `[N]`; may require a gradient.
        lora_bias: `[N]`, the bias of B, times `scaling`; may require a gradient.
        dropout: The probability of this very call: 0 while evaluating. At most 1, exclusive.
        transposed: Whether `weight` is `[K, N]`.

    Returns:
        `[..., N]` in x's dtype, or autocast's.

    Raises:
        ValueError: shapes that do not fit, a scaling of several elements, a dropout outside [0, 1),
            a weight that requires a gradient.
        TypeError: dtypes that do not go together, or that are not floating.
        RuntimeError: Triton was asked for by name and cannot compute this call.

    Second derivatives are not there. LoRA: Hu et al. 2021, arXiv:2106.09685.
    """
    _check(x, weight, lora_a, lora_b, bias, lora_bias, dropout, transposed)
    if isinstance(scaling, Tensor):
        if scaling.numel() != 1:
            raise ValueError(f"scaling has shape {tuple(scaling.shape)}; it must be one number")
        scaling = scaling.reshape(())
    if lora_b is not None and isinstance(scaling, Tensor):
        lora_b = lora_b * scaling  # autograd gives both their gradients
        lora_bias = None if lora_bias is None else lora_bias * scaling
        factor = 1.0
    else:
        factor = float(scaling)
    if lora_bias is not None:
        # Summed in fp32: rounded once, with the result.
        extra = lora_bias.to(torch.promote_types(lora_bias.dtype, torch.float32)) * factor
        bias = extra if bias is None else bias + extra
    device = x.device.type
    if not torch.is_autocast_enabled(device):
        return _apply(x, weight, bias, lora_a, lora_b, factor, dropout, transposed)
    x = x.to(torch.get_autocast_dtype(device))
    # `addmm_` and `out=` are not autocast's: it must not see the arithmetic.
    with torch.autocast(device, enabled=False):
        return _apply(x, weight, bias, lora_a, lora_b, factor, dropout, transposed)


def _apply(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    scaling: float,
    dropout: float,
    transposed: bool,
) -> Tensor:
    rows = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    y: Tensor = LoraLinear.apply(  # type: ignore[no-untyped-call]
        rows, weight, bias, lora_a, lora_b, scaling, dropout, transposed
    )
    return y.view(*x.shape[:-1], y.shape[-1])


def _check(
    x: Tensor,
    weight: Tensor,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    bias: Tensor | None,
    lora_bias: Tensor | None,
    dropout: float,
    transposed: bool,
) -> None:
    if weight.dim() != 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; it must be a matrix")
    features, outs = weight.shape if transposed else weight.shape[::-1]
    if x.dim() == 0 or x.shape[-1] != features:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, but weight {tuple(weight.shape)} takes {features} "
            f"features{' (transposed)' if transposed else ''}; x must be [..., {features}]"
        )
    if not x.is_floating_point() or not weight.is_floating_point():
        raise TypeError(f"x is {x.dtype} and weight {weight.dtype}; both must be floating")
    autocast = torch.is_autocast_enabled(x.device.type)
    if not autocast and x.dtype is not weight.dtype and _narrower(x.dtype, weight.dtype):
        raise TypeError(
            f"x is {x.dtype} and weight {weight.dtype}; bring x to {weight.dtype}, or the weight "
            f"to {x.dtype}, or use autocast"
        )
    if weight.requires_grad:
        raise ValueError("weight requires a gradient, but it is frozen here; set requires_grad")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; it must lie in [0, 1)")
    for name, vector in (("bias", bias), ("lora_bias", lora_bias)):
        if vector is not None and vector.shape != (outs,):
            raise ValueError(f"{name} has shape {tuple(vector.shape)}; it must be [{outs}]")
    adapter = {"lora_a": lora_a, "lora_b": lora_b, "bias": bias, "lora_bias": lora_bias}
    for name, tensor in adapter.items():
        if tensor is not None and not tensor.is_floating_point():
            raise TypeError(f"{name} is {tensor.dtype}; it must be floating")
    if lora_a is None and lora_b is None:
        return
    if lora_a is None or lora_b is None:
        raise ValueError("lora_a and lora_b go together; one of them is None")
    rank = lora_a.shape[0] if lora_a.dim() else 0
    if lora_a.shape != (rank, features) or lora_b.shape != (outs, rank):
        raise ValueError(
            f"lora_a has shape {tuple(lora_a.shape)} and lora_b {tuple(lora_b.shape)}; for weight "
            f"{tuple(weight.shape)} they must be [R, {features}] and [{outs}, R]"
        )
    if not 1 <= rank <= LARGEST_RANK:
        raise ValueError(f"the rank is {rank}; it must lie in 1 .. {LARGEST_RANK}")


def _narrower(x: torch.dtype, weight: torch.dtype) -> bool:
    """Whether computing in x's dtype would be other than widening the weight."""
    return torch.promote_types(x, weight) is not x
