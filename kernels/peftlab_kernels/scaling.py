"""An adapter's factor, which is a number or a tensor that may be trained."""

from __future__ import annotations

from torch import Tensor


def fold_scaling(
    scaling: float | Tensor, lora_b: Tensor | None, lora_bias: Tensor | None
) -> tuple[float, Tensor | None, Tensor | None]:
    """The factor as a number, and B and its bias with a factor that is a tensor multiplied in.

    So autograd forms the tensor's gradient. Raises `ValueError` for a tensor of several elements.
    """
    if not isinstance(scaling, Tensor):
        return float(scaling), lora_b, lora_bias
    if scaling.numel() != 1:
        raise ValueError(f"scaling has shape {tuple(scaling.shape)}; it must be one number")
    scaling = scaling.reshape(())
    return (
        1.0,
        None if lora_b is None else lora_b * scaling,
        None if lora_bias is None else lora_bias * scaling,
    )
