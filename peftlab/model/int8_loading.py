"""16- and 32-bit checkpoints into 8-bit rows as they are read, through Transformers' own loading.

Transformers reads one tensor at a time, under its name here, and asks the quantiser below what to
make of it: beside the 8-bit model, no more than one tensor of the checkpoint is ever in memory.
Names, ties, shards and fresh heads are Transformers' business, as for every model.
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
    """What `from_pretrained` takes as its `quantization_config`: 8-bit layers of ours."""

    quant_method: Any = METHOD


class Int8Quantizer(HfQuantizer):
    """Puts 8-bit layers into the model before its weights come, and fills them as they do."""

    def __init__(self, quantization_config: Int8Loading, **_: Any) -> None:
        super().__init__(quantization_config, pre_quantized=False)
        self.stored = False
        """Whether the checkpoint holds 8-bit layers already; they are read as they are."""
        self.layers: dict[str, nn.Module] = {}
        """The model's 8-bit layers by name, and what stood there before."""
        self.lost: dict[str, str] = {}
        """Layers that stay as the checkpoint has them, and why."""
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
            # Nothing in them is ever drawn.
            model.get_submodule(name)._is_hf_initialized = True
        self.shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        return model

    def unnoticed(self, model: nn.Module) -> set[tuple[str, torch.Size, torch.Size]]:
        """What has another shape than the model's: name, found, wanted. 5.17 compares none."""
        found = {name: tensor.shape for name, tensor in model.state_dict().items()}
        return {
            (name, found[name], wanted)
            for name, wanted in self.shapes.items()
            if found.get(name, wanted) != wanted and name.removesuffix(".weight") not in self.lost
        }

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        name, _dot, part = param_name.rpartition(".")
        return part == "weight" and not self.stored and name in self.layers

    def param_element_size(self, model: Any, param_name: str, param: Tensor) -> float:
        whole = param.element_size()
        return 1 if self.param_needs_quantization(model, param_name) else whole

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
        ((key, found),) = input_dict.items()
        name = key.removesuffix(".weight")
        layer: Int8Linear = model.get_submodule(name)
        original: Any = self.quantizer.layers[name]
        weight: Tensor = found[0] if isinstance(found, list) else found
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
        """Give the place back to the layer that stood there; its bias may have come already."""
        original.bias = layer.bias
        model.set_submodule(name, original)
        self.quantizer.lost[name] = reason
        del self.quantizer.layers[name]


def int8_loading() -> Int8Loading:
    """The `quantization_config` by which `from_pretrained` loads 8-bit layers of ours."""
    AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(METHOD, Int8Loading)
    AUTO_QUANTIZER_MAPPING.setdefault(METHOD, Int8Quantizer)
    return Int8Loading()


def settle(model: Any, info: dict[str, Any]) -> tuple[str, ...]:
    """Make a loaded model one that any library trains and saves; returns what to tell the user.

    `info`, what loading found, is completed: of weights that were to be quantised Transformers
    compares no shapes, and it misses scales that a 16-bit checkpoint cannot have.
    """
    quantizer: Int8Quantizer = model.hf_quantizer
    quantizer.remove_quantization_config(model)  # type: ignore[no-untyped-call]
    keep = (*quantizer.kept, *quantizer.lost)
    if quantizer.stored:
        # As the checkpoint says it; only layers of one model's kind can be named by what is kept.
        linears = {n for n, m in model.named_modules() if type(m) is nn.Linear}
        keep = tuple(sorted(linears))
    model.config.quantization_config = eight_bit_config(keep)
    unnoticed = quantizer.unnoticed(model)
    for name, found, wanted in unnoticed:
        if not name.startswith(tuple(f"{layer}." for layer in quantizer.layers)):
            raise CheckFailed(
                f"{name} is {tuple(found)} in the checkpoint and {tuple(wanted)} here, which this "
                "version of Transformers cannot replace in an 8-bit model; upgrade transformers."
            )
    info["mismatched_keys"] = {*info["mismatched_keys"], *quantizer.mismatched, *unnoticed}
    if not quantizer.stored:
        made = {f"{n}.{part}" for n in quantizer.layers for part in ("SCB", "weight_format")}
        info["missing_keys"] = set(info["missing_keys"]) - made
    notes = [f"{len(quantizer.layers)} frozen layers rest in 8 bits"]
    if quantizer.lost:
        shown = "; ".join(f"{n}: {why}" for n, why in list(quantizer.lost.items())[:_SHOWN])
        more = ", ..." if len(quantizer.lost) > _SHOWN else ""
        notes.append(f"{len(quantizer.lost)} stay in 16 bits ({shown}{more})")
    return tuple(notes)
