"""Quantises 16- and 32-bit checkpoints to 8-bit rows while Transformers loads them.

Transformers reads one tensor at a time, under the model's name for it, and passes it to the
quantiser below: beside the 8-bit model, at most one tensor of the checkpoint is in memory.
Transformers handles names, ties, shards and new heads, as for every model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from peftlab.errors import CheckFailed
from peftlab.model.checkpoint import tensor_shapes
from peftlab.model.quantized import (
    SCALES,
    eight_bit_config,
    eight_bit_linears,
    put_in_8bit,
    unquantised_modules,
)
from peftlab_kernels.int8_format import int8_quantize
from peftlab_kernels.int8_linear import BY_ROWS, Int8Linear

METHOD = "peftlab_int8"
_SHOWN = 4


@dataclass
class Int8Loading(QuantizationConfigMixin):
    """The `quantization_config` of `from_pretrained` for our 8-bit layers."""

    quant_method: Any = METHOD


class Int8Quantizer(HfQuantizer):
    """Puts 8-bit layers into the model before its weights are loaded, and fills them."""

    def __init__(self, quantization_config: Int8Loading, **_: Any) -> None:
        super().__init__(quantization_config, pre_quantized=False)
        self.stored = False
        """Whether the checkpoint has 8-bit layers already; they are read unchanged."""
        self.layers: dict[str, nn.Module] = {}
        """The model's 8-bit layers by name, and the layers that they replace."""
        self.unquantised: dict[str, str] = {}
        """Layers that stay in the checkpoint's dtype, and why."""
        self.mismatched: set[tuple[str, torch.Size, torch.Size]] = set()

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: Any = (), **_: Any
    ) -> Any:
        self.kept = unquantised_modules(model)
        keys = tensor_shapes(tuple(Path(file) for file in checkpoint_files))
        self.stored = any(key.endswith(SCALES) for key in keys)
        names = eight_bit_linears(model, keys if self.stored else None)
        self.layers = put_in_8bit(model, names, awaiting=not self.stored)
        for name in self.layers:
            # They need no initialisation.
            model.get_submodule(name)._is_hf_initialized = True
        self.shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        return model

    def unnoticed(self, model: nn.Module) -> set[tuple[str, torch.Size, torch.Size]]:
        """Tensors whose shape is not the model's: name, stored, expected. 5.17 compares none."""
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        return {
            (name, shapes[name], expected)
            for name, expected in self.shapes.items()
            if shapes.get(name, expected) != expected
            and name.removesuffix(".weight") not in self.unquantised
        }

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        name, _dot, part = param_name.rpartition(".")
        return part == "weight" and not self.stored and name in self.layers

    def param_element_size(self, model: Any, param_name: str, param: Tensor) -> float:
        if self.param_needs_quantization(model, param_name):
            return 1
        return param.element_size()

    def get_quantize_ops(self) -> ConversionOps:
        return _ToRows(self)

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


class _ToRows(ConversionOps):
    """One weight as it comes from the checkpoint -> codes, scales and format."""

    def __init__(self, quantizer: Int8Quantizer) -> None:
        self.quantizer = quantizer

    def convert(
        self, input_dict: dict[str, Any], *_: Any, model: Any = None, missing_keys: Any = None,
        **__: Any,
    ) -> dict[str, Any]:  # fmt: skip
        ((key, stored),) = input_dict.items()
        name = key.removesuffix(".weight")
        layer: Int8Linear = model.get_submodule(name)
        original: Any = self.quantizer.layers[name]
        weight: Tensor = stored[0] if isinstance(stored, list) else stored
        if weight.shape != original.weight.shape:
            self.quantizer.mismatched.add((key, weight.shape, original.weight.shape))
            return {}
        rows = weight if isinstance(original, nn.Linear) else weight.T  # Conv1D keeps [K, N]
        try:
            codes, scales = int8_quantize(rows)
        except ValueError as error:
            self._keep(model, name, layer, original, str(error))
            missing_keys.difference_update({f"{name}.SCB", f"{name}.weight_format"})
            return {key: weight}
        layout = torch.tensor(BY_ROWS, dtype=torch.uint8, device=codes.device)
        return {key: codes, f"{name}.SCB": scales, f"{name}.weight_format": layout}

    def _keep(
        self, model: nn.Module, name: str, layer: Int8Linear, original: Any, reason: str
    ) -> None:
        """Restore the original layer; its bias may have been loaded already."""
        original.bias = layer.bias
        model.set_submodule(name, original)
        self.quantizer.unquantised[name] = reason
        del self.quantizer.layers[name]


def int8_loading() -> Int8Loading:
    """The `quantization_config` by which `from_pretrained` loads our 8-bit layers."""
    AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(METHOD, Int8Loading)
    AUTO_QUANTIZER_MAPPING.setdefault(METHOD, Int8Quantizer)
    return Int8Loading()


def finish_loading(model: Any, info: dict[str, Any]) -> tuple[str, ...]:
    """Make a loaded model trainable and saveable by any library; returns notes for the user.

    Completes `info`, the loading info: Transformers compares no shapes of quantised weights, and
    reports scales as missing that a 16-bit checkpoint cannot have.
    """
    quantizer: Int8Quantizer = model.hf_quantizer
    quantizer.remove_quantization_config(model)  # type: ignore[no-untyped-call]
    keep = (*quantizer.kept, *quantizer.unquantised)
    if quantizer.stored:
        # The stored 8-bit layers are Int8Linear here: all plain linears are kept.
        linears = {n for n, m in model.named_modules() if type(m) is nn.Linear}
        keep = tuple(sorted(linears))
    model.config.quantization_config = eight_bit_config(keep)
    unnoticed = quantizer.unnoticed(model)
    for name, stored, expected in unnoticed:
        if not name.startswith(tuple(f"{layer}." for layer in quantizer.layers)):
            raise CheckFailed(
                f"{name} is {tuple(stored)} in the checkpoint and {tuple(expected)} here, which "
                "this version of Transformers cannot replace in 8 bits; upgrade transformers."
            )
    info["mismatched_keys"] = {*info["mismatched_keys"], *quantizer.mismatched, *unnoticed}
    if not quantizer.stored:
        made = {f"{n}.{part}" for n in quantizer.layers for part in ("SCB", "weight_format")}
        info["missing_keys"] = set(info["missing_keys"]) - made
    notes = [f"{len(quantizer.layers)} frozen layers are stored in 8 bits"]
    if quantizer.unquantised:
        shown = "; ".join(f"{n}: {why}" for n, why in list(quantizer.unquantised.items())[:_SHOWN])
        more = ", ..." if len(quantizer.unquantised) > _SHOWN else ""
        notes.append(f"{len(quantizer.unquantised)} stay in 16 bits ({shown}{more})")
    return tuple(notes)
