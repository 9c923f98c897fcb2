"""The merged tensors, one module's at a time."""

from __future__ import annotations

import torch

from peftlab.errors import CheckFailed
from peftlab.export.adapted_layer import merged_module
from peftlab.export.changes import Changes
from peftlab.export.outline import Output
from peftlab.export.safetensors_files import DTYPES
from peftlab.export.scratch import Scratch
from peftlab.export.skeleton import Skeleton
from peftlab_kernels.int8_format import int8_dequantize, int8_quantize
from peftlab_kernels.int8_linear import BY_ROWS


class Tensors:
    """Computes the tensors of an outline; holds at most one module's tensors at a time.

    With `overwrite` a merged tensor is valid until the second module after its own is merged: long
    enough to write it, with the same memory for all.
    """

    def __init__(
        self,
        built: Skeleton,
        changes: Changes,
        outputs: tuple[Output, ...],
        *,
        overwrite: bool = False,
    ) -> None:
        self._built = built
        self._scratch = Scratch()
        self._overwrite = overwrite
        self._merged = 0
        self._changes = changes
        self._of_module: dict[str, list[Output]] = {}
        for output in outputs:
            if output.kind == "merged":
                self._of_module.setdefault(output.module, []).append(output)
        self._made: dict[str, torch.Tensor] = {}
        self.consumed = 0
        """How many tensors of the trained part have been used."""

    def made(self, output: Output) -> torch.Tensor:
        """The tensor of an output that is not copied. Raises `CheckFailed` if not finite."""
        if output.kind == "scales":
            return self._made.pop(output.spec.name)
        if output.kind == "format":
            return torch.tensor(BY_ROWS, dtype=torch.uint8)
        tensor = self._unrounded(output)
        if output.in_8bit:
            codes, scales = int8_quantize(tensor.T.contiguous() if output.transposed else tensor)
            self._made[f"{output.spec.name.removesuffix('weight')}SCB"] = scales
            return codes
        tensor = tensor.to(DTYPES[output.spec.dtype])
        if not _finite(tensor):
            raise CheckFailed(
                f"{output.spec.name} is not finite as {output.spec.dtype}: the adapter or the base "
                "holds NaN or infinity, or the dtype is too narrow for it; try --dtype float32."
            )
        return tensor

    def _unrounded(self, output: Output) -> torch.Tensor:
        if output.kind == "merged":
            if output.spec.name not in self._made:
                self._merge(output.module)
            return self._made.pop(output.spec.name)
        if output.kind == "replaced":
            assert output.whole is not None
            self.consumed += 1
            return output.whole.read()
        if output.kind == "rows":
            self.consumed += 1
        return based(output)

    def _merge(self, module: str) -> None:
        outputs = self._of_module[module]
        base = {output.parameter.rpartition(".")[2]: self._base(output) for output in outputs}
        kind = self._built.model.get_submodule(module)
        merged = merged_module(module, base, kind, self._changes, self._scratch)
        self.consumed += len(self._changes.adapted[module])
        self.consumed += sum(output.parameter in self._changes.bases for output in outputs)
        for output in outputs:
            name = output.parameter.rpartition(".")[2]
            self._made[output.spec.name] = merged[name]

    def _base(self, output: Output) -> torch.Tensor:
        """A parameter that is merged into, in the wider of its dtype and the written one."""
        if not self._overwrite or len(self._of_module[output.module]) > 1:
            return _wide_enough(based(output), output)
        # One is written while the next is computed.
        self._merged += 1
        slot = self._merged % 2
        stored, shape = output.base, output.spec.shape
        assert stored is not None
        into = self._scratch.tensor(f"base {slot}", stored.shape, DTYPES[stored.dtype])
        tensor = based(output, into)
        dtype = _wide(tensor.dtype, output)
        if dtype == tensor.dtype:
            return tensor
        return self._scratch.tensor(f"wide {slot}", shape, dtype).copy_(tensor)


def based(output: Output, into: torch.Tensor | None = None) -> torch.Tensor:
    """The tensor that an adapter was added to in training, as a new tensor; fp32 if in 8 bits.

    A tensor that is stored in that form is read into `into`, if given.
    """
    assert output.base is not None
    tensor = output.base.read(into)
    if output.rows is not None:
        indices, rows = output.rows
        tensor.index_copy_(0, torch.tensor(indices), rows.read().to(tensor.dtype))
    if output.scales is not None:
        return _in_rows(_dequantised(tensor, output.scales.read()), output)
    if not output.quantised:
        return tensor
    rounded = tensor if output.through is None else tensor.to(output.through)
    try:
        codes, scales = int8_quantize(_in_rows(rounded, output))
    except ValueError:  # loading did not quantise this layer, for the same reason
        return tensor
    return _in_rows(_dequantised(codes, scales), output)


def _dequantised(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return int8_dequantize(codes, scales, torch.empty(codes.shape, dtype=torch.float32))


def _in_rows(matrix: torch.Tensor, output: Output) -> torch.Tensor:
    """Transpose between a layer's weight and its 8-bit form, where they differ."""
    return matrix.T.contiguous() if output.transposed else matrix


def _finite(tensor: torch.Tensor) -> bool:
    """Whether no entry is NaN or infinite; either would be the minimum or maximum."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(bool(bound.isfinite()) for bound in tensor.aminmax())


def _wide_enough(tensor: torch.Tensor, output: Output) -> torch.Tensor:
    """Merged in the wider of both dtypes, and rounded once."""
    return tensor.to(_wide(tensor.dtype, output))


def _wide(dtype: torch.dtype, output: Output) -> torch.dtype:
    return torch.promote_types(
        dtype, torch.float32 if output.in_8bit else DTYPES[output.spec.dtype]
    )
