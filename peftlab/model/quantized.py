"""Which layers are stored in 8 or 4 bits, and their empty layers before weights are loaded.

8-bit layers are our own, in bitsandbytes' format, and need torch alone; 4-bit ones are
bitsandbytes'.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from peftlab.errors import CheckFailed
from peftlab.model.mode import pin_training
from peftlab.model.structure import after_blocks, head_modules
from peftlab_kernels.int8_linear import Int8Linear

SCALES = ".SCB"
"""The ending of a checkpoint's key for the row scales of an 8-bit weight."""


def require_bitsandbytes() -> None:
    """Raises `CheckFailed`, naming the extra, where bitsandbytes cannot be imported."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise CheckFailed(
            f"method.bits is 4, which needs bitsandbytes ({error}); install it with "
            "pip install 'peftlab[quant]', or set method.bits=8, which needs no package."
        ) from None


def eight_bit_config(keep: Iterable[str]) -> Any:
    """The `quantization_config` of an 8-bit model whose named modules are not quantised."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(keep))


def four_bit_config(model: nn.Module, compute: torch.dtype) -> Any:
    """Transformers' settings that load the model's blocks in NF4."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules=list(unquantised_modules(model)),
    )


def unquantised_modules(model: nn.Module) -> tuple[str, ...]:
    """Modules that stay unquantised: the head, and those after the blocks.

    Also those that an architecture needs in fp32 (T5's `wo`).
    """
    kept: Any = getattr(model, "_keep_in_fp32_modules", None) or ()
    return (*head_modules(model), *after_blocks(model), *sorted(kept))


def eight_bit_linears(model: nn.Module, stored: Iterable[str] | None) -> tuple[str, ...]:
    """Names of the linear layers to store in 8 bits.

    `stored` are the keys of a checkpoint with 8-bit layers, which are then the ones. Raises
    `CheckFailed` where one of them is not a linear layer in the model.
    """
    from transformers.quantizers.quantizers_utils import should_convert_module

    linears = _linears(model)
    if stored is None:
        keep = list(unquantised_modules(model))
        return tuple(name for name in linears if should_convert_module(name, keep))
    layers = tuple(
        name.removesuffix(".weight")
        for name in _names_here(model, [k for k in stored if k.endswith(SCALES)])
    )
    for name in layers:
        if name not in linears:
            kind = type(model.get_submodule(name)).__name__
            raise CheckFailed(
                f"the checkpoint has {name} in 8 bits, which is a {kind} in the model."
            )
    return layers


def put_in_8bit(
    model: nn.Module, names: Iterable[str], *, awaiting: bool = False
) -> dict[str, nn.Module]:
    """Replace the named linears by empty 8-bit layers on meta; returns the linears by name.

    `awaiting`: their weights will be read as floats and then quantised. Until then the layers have
    the linears' dtype, or Transformers 5.17 would cast what it reads to int8.
    """
    from transformers.pytorch_utils import Conv1D

    replaced: dict[str, nn.Module] = {}
    for name in names:
        linear: Any = model.get_submodule(name)
        rows, columns = linear.weight.shape
        if isinstance(linear, Conv1D):
            rows, columns = columns, rows
        bias = linear.bias
        layer = Int8Linear(columns, rows, bias=False, device="meta")
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
        if awaiting:
            awaited = torch.empty(rows, columns, dtype=linear.weight.dtype, device="meta")
            layer.weight = nn.Parameter(awaited, requires_grad=False)
        model.set_submodule(name, layer)
        replaced[name] = linear
    return replaced


def put_in_4bit(model: nn.Module, compute: torch.dtype) -> nn.Module:
    """Swap the linears of a model without weights for bitsandbytes' 4-bit ones, as loading does."""
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    config = four_bit_config(model, compute)
    swapped: nn.Module = replace_with_bnb_linear(
        model, modules_to_not_convert=config.llm_int8_skip_modules, quantization_config=config
    )
    return swapped


def pin_arithmetic(model: nn.Module) -> int:
    """Make bitsandbytes' 4-bit layers compute in evaluation as in training; returns their number.

    In evaluation on a CPU they repack their weights for another product. Nothing else in them
    depends on the mode.
    """
    import bitsandbytes as bnb

    layers = [m for m in model.modules() if isinstance(m, bnb.nn.modules.Linear4bit)]
    for layer in layers:
        pin_training(layer)
    return len(layers)


def holds_8bit(model: nn.Module) -> bool:
    """Whether a model has our 8-bit layers."""
    return any(isinstance(module, Int8Linear) for module in model.modules())


def scalars(parameter: nn.Parameter) -> int:
    """The number of scalars of a parameter; bitsandbytes packs two 4-bit ones into one."""
    packed: Any = getattr(parameter, "quant_state", None)
    return parameter.numel() if packed is None else math.prod(packed.shape)


def _linears(model: nn.Module) -> tuple[str, ...]:
    from transformers.pytorch_utils import Conv1D

    return tuple(n for n, m in model.named_modules() if type(m) in {nn.Linear, Conv1D})


def _names_here(model: Any, scales: Iterable[str]) -> tuple[str, ...]:
    """Names of the model's weights, by the keys of their scales: Transformers renames some."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    transforms: list[Any] = get_model_conversion_mapping(model)
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    renamings = [t for t in transforms if not isinstance(t, WeightConverter)]
    here = model.state_dict()
    names = (
        rename_source_key(
            f"{key.removesuffix(SCALES)}.weight", renamings, converters,
            model.base_model_prefix, here,
        )[0]
        for key in scales
    )  # fmt: skip
    return tuple(name for name in names if name in here)
