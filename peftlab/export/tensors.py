"""The merged tensors themselves, one module's at a time."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from peftlab.errors import CheckFailed
from peftlab.export.changes import Changes, merged_module
from peftlab.export.outline import Output
from peftlab.export.safetensors_files import DTYPES
from peftlab.export.skeleton import Skeleton
from peftlab_kernels.int8_format import int8_dequantize, int8_quantize


class Tensors:
    """Makes what an outline announces; holds no more than one module's tensors at a time."""

    def __init__(self, built: Skeleton, changes: Changes, outputs: tuple[Output, ...]) -> None:
        self._built = built
        self._changes = changes
        self._of_module: dict[str, list[Output]] = {}
        for output in outputs:
            if output.kind == "merged":
                self._of_module.setdefault(output.module, []).append(output)
        self._made: dict[str, torch.Tensor] = {}
        self.consumed = 0
        """How many tensors of the trained part have been used."""

    def made(self, output: Output) -> torch.Tensor:
        """The tensor of an output that is not just copied. Raises `CheckFailed` if not finite."""
        dtype = DTYPES[output.spec.dtype]
        if output.kind == "merged":
            if output.spec.name not in self._made:
                self._merge(output.module)
            tensor = self._made.pop(output.spec.name)
        elif output.kind == "replaced":
            assert output.whole is not None
            tensor = output.whole.read().to(dtype)
            self.consumed += 1
        else:
            tensor = based(output).to(dtype)
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckFailed(
                f"{output.spec.name} is not finite as {output.spec.dtype}: the adapter or the base "
                "holds NaN or infinity, or the dtype is too narrow for it; try --dtype float32."
            )
        return tensor

    def _merge(self, module: str) -> None:
        outputs = self._of_module[module]
        base: Mapping[str, torch.Tensor] = {
            output.parameter.rpartition(".")[2]: _wide_enough(based(output), output)
            for output in outputs
        }
        kind = self._built.model.get_submodule(module)
        found = merged_module(module, base, kind, self._changes)
        self.consumed += len(self._changes.adapted[module])
        for output in outputs:
            name = output.parameter.rpartition(".")[2]
            self._made[output.spec.name] = found[name].to(DTYPES[output.spec.dtype])


def based(output: Output) -> torch.Tensor:
    """The base's tensor as training saw it, in memory of its own; fp32 where it was in 8 bits."""
    assert output.base is not None
    tensor = output.base.read()
    if not output.quantised:
        return tensor
    try:
        codes, scales = int8_quantize(tensor)
    except ValueError:  # loading left this layer as it was, for the same reason
        return tensor
    return int8_dequantize(codes, scales, torch.empty(codes.shape, dtype=torch.float32))


def _wide_enough(tensor: torch.Tensor, output: Output) -> torch.Tensor:
    """Merged in the wider of both dtypes, and rounded once."""
    wanted = DTYPES[output.spec.dtype]
    return tensor.to(torch.promote_types(tensor.dtype, wanted))
