"""8-bit frozen layers through bitsandbytes, the one module that imports it."""

from __future__ import annotations

from typing import Any

from torch import nn

from peftlab.errors import CheckFailed
from peftlab.model.mode import pin_training
from peftlab.model.structure import after_blocks, head_modules


def require_bitsandbytes() -> None:
    """Raises `CheckFailed`, naming the extra, where bitsandbytes cannot be imported."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise CheckFailed(
            f"method.name is qlora, which needs bitsandbytes ({error}); install it with "
            "pip install 'peftlab[quant]', or set method.name=lora."
        ) from None


def eight_bit_config(keep: tuple[str, ...]) -> Any:
    """Transformers' quantisation settings; the named modules stay as they are."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(keep))


def unquantised_modules(model: nn.Module) -> tuple[str, ...]:
    """What stays unquantised: all but the blocks' linears, the head above all.

    Transformers leaves out of 8 bits what an architecture wants in fp32 besides (T5's `wo`).
    """
    kept: Any = getattr(model, "_keep_in_fp32_modules", None) or ()
    return (*head_modules(model), *after_blocks(model), *sorted(kept))


def quantise_structure(model: nn.Module, keep: tuple[str, ...]) -> nn.Module:
    """Swap the linears of a model without weights for 8-bit ones, as loading would."""
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    swapped: nn.Module = replace_with_bnb_linear(
        model, modules_to_not_convert=list(keep), quantization_config=eight_bit_config(keep)
    )
    return swapped


def settle_arithmetic(model: nn.Module) -> int:
    """Make evaluation compute as training does; returns how many layers are 8-bit.

    bitsandbytes dequantises the weights while training, and quantises the activations too while
    evaluating: logits would differ by some percent between the function that was trained and the
    one that is measured. Its layers hold nothing else that depends on the mode.
    """
    import bitsandbytes as bnb

    count = 0
    for module in model.modules():
        if isinstance(module, bnb.nn.modules.Linear8bitLt):
            pin_training(module)
            count += 1
    return count
