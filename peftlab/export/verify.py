"""Verification of a merged model: its bytes, and its logits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peftlab.errors import VerificationError
from peftlab.export.adapted_layer import adapted_module
from peftlab.export.changes import Changes
from peftlab.export.outline import Output
from peftlab.export.safetensors_files import DTYPES, Spec, Stored, stored_in
from peftlab.export.scratch import Scratch
from peftlab.export.skeleton import Skeleton, tied_names
from peftlab.export.streamed import logits, sample_inputs, streamed
from peftlab.export.tensors import Tensors, based
from peftlab_kernels.int8_format import int8_dequantize

TOLERANCES: Mapping[str, float] = {
    "F64": 1e-5, "F32": 1e-5, "F16": 2e-3, "BF16": 2e-2, "I8": 1e-1,
}  # fmt: skip
"""The relative error of merged logits that rounding to a dtype causes."""


def hashed(stored: Stored) -> str:
    """SHA-256 of a tensor's bytes."""
    digest = hashlib.sha256()
    for chunk in stored.chunks():
        digest.update(chunk)
    return digest.hexdigest()


def check_files(
    files: Sequence[Path], outputs: Sequence[Output], copied: Mapping[str, str]
) -> dict[str, Stored]:
    """Read the written files again: every tensor is there as planned, copied ones byte by byte.

    `copied` has the hashes of the bytes that were copied, by name. Returns the tensors. Raises
    `VerificationError` naming the first that differs.
    """
    stored = stored_in(files)
    announced = {output.spec.name: output.spec for output in outputs}
    for name in sorted(announced.keys() ^ stored.keys()):
        raise VerificationError(f"{name} is {'missing' if name in announced else 'unexpected'}.")
    for name, spec in announced.items():
        if (stored[name].dtype, stored[name].shape) != (spec.dtype, spec.shape):
            raise VerificationError(f"{name} was written as {stored[name].dtype} of another shape.")
    for name, digest in copied.items():
        if hashed(stored[name]) != digest:
            raise VerificationError(
                f"{name} was copied and reads back differently; the disk or its driver is at fault."
            )
    return stored


def logit_error(
    built: Skeleton,
    changes: Changes,
    outputs: Sequence[Output],
    merged: Mapping[str, Stored],
    inputs: Mapping[str, Tensor] | None = None,
    replay: Callable[[nn.Module], None] | None = None,
    expected: Tensor | None = None,
) -> dict[str, Any]:
    """The error of the merged model's logits against the adapter over its base, both in fp32.

    One module's weights of either model are in memory at a time. `error` is relative, by Frobenius
    norms, and `tolerance` that of the dtype written; only `replay`, which is called with the model
    as it was trained, raises. `expected` are that model's logits for the sample inputs, where it
    has been merged by PEFT and cannot be streamed.
    """
    inputs = sample_inputs(built) if inputs is None else inputs
    by_name = {output.parameter: output for output in outputs if output.parameter}
    if expected is None:
        with as_trained(built, changes, outputs) as model:
            expected = logits(model, inputs)
            if replay is not None:
                replay(model)
    with streamed(built, partial(_read, _written(by_name, merged), _ties(built)), {}) as model:
        merged_logits = logits(model, inputs)
    size = float(expected.double().norm())
    dtypes = {output.spec.dtype for output in outputs} & TOLERANCES.keys()
    return {
        "error": float((merged_logits.double() - expected.double()).norm()) / max(size, 1e-30),
        "tolerance": max(TOLERANCES[dtype] for dtype in dtypes),
        "finite": bool(merged_logits.isfinite().all()),
        "tokens": int(inputs["input_ids"].numel()),
    }


@contextmanager
def as_trained(built: Skeleton, changes: Changes, outputs: Sequence[Output]) -> Iterator[nn.Module]:
    """The base with the trained part applied and not merged, streamed in fp32."""
    by_name = {output.parameter: output for output in outputs if output.parameter}
    scratch = Scratch()
    weights = partial(_trained, by_name, _ties(built), scratch)
    with streamed(built, weights, _adapted(built, by_name, changes, scratch)) as model:
        yield model


@contextmanager
def as_merged(built: Skeleton, changes: Changes, outputs: Sequence[Output]) -> Iterator[nn.Module]:
    """The merged model before it is written, rounded as it will be, streamed in fp32."""
    by_name = {output.parameter: output for output in outputs if output.parameter}
    tensors = Tensors(built, changes, tuple(outputs))

    def made(output: Output) -> Tensor:
        if output.kind == "copied":
            return based(output)
        tensor = tensors.made(output)
        if not output.in_8bit:
            return tensor
        stem = output.spec.name.removesuffix("weight")
        scales = tensors.made(Output(Spec(f"{stem}SCB", "F32", tensor.shape[:1]), "scales"))
        return _from_codes(tensor, scales, output)

    made_by_name = {name: partial(made, output) for name, output in by_name.items()}
    with streamed(built, partial(_read, made_by_name, _ties(built)), {}) as model:
        yield model


def _from_codes(codes: Tensor, scales: Tensor, output: Output) -> Tensor:
    weight = int8_dequantize(codes, scales, torch.empty(codes.shape))
    return weight.T.contiguous() if output.transposed else weight


def _written(
    by_name: Mapping[str, Output], merged: Mapping[str, Stored]
) -> dict[str, Callable[[], Tensor]]:
    """The reader of each parameter of the merged model; 8-bit ones are dequantised."""

    scratch = Scratch()

    def read(output: Output) -> Tensor:
        name = output.spec.name
        tensor = merged[name].read(_room(merged[name], scratch))
        if not output.in_8bit:
            return tensor
        scales = merged[f"{name.removesuffix('weight')}SCB"].read()
        return _from_codes(tensor, scales, output)

    return {name: partial(read, output) for name, output in by_name.items()}


def _adapted(
    built: Skeleton, by_name: Mapping[str, Output], changes: Changes, scratch: Scratch
) -> dict[str, Callable[[], nn.Module]]:
    """PEFT's own layer for each adapted module, built when called, in fp32 and not merged."""

    def make(module: str) -> nn.Module:
        kind = built.model.get_submodule(module)
        base = {}
        for name, _ in kind.named_parameters(recurse=False):
            output = by_name[f"{module}.{name}"]
            whole = output.whole  # a bias that trained
            stored = _based(output, scratch) if whole is None else whole.read()
            wide = scratch.tensor(f"adapted {name}", stored.shape, torch.float32)
            base[name] = wide.copy_(stored)
        adapted: nn.Module = adapted_module(module, base, kind, changes).base_model.model
        return adapted.get_submodule(module)

    return {module: partial(make, module) for module in changes.adapted}


def _trained(
    by_name: Mapping[str, Output], ties: Mapping[str, str], scratch: Scratch, name: str
) -> Tensor:
    output = by_name[name if name in by_name else ties[name]]
    return output.whole.read() if output.whole is not None else _based(output, scratch)


def _based(output: Output, scratch: Scratch) -> Tensor:
    """`based`, in memory that the next call reuses."""
    assert output.base is not None
    return based(output, _room(output.base, scratch))


def _room(stored: Stored, scratch: Scratch) -> Tensor | None:
    dtype = DTYPES.get(stored.dtype)  # reading any other dtype raises
    return None if dtype is None else scratch.tensor("stored", stored.shape, dtype)


def _read(
    written: Mapping[str, Callable[[], Tensor]], ties: Mapping[str, str], name: str
) -> Tensor:
    return written[name if name in written else ties[name]]()


def _ties(built: Skeleton) -> dict[str, str]:
    """For each name of a tied parameter the one under which it is written."""
    return {
        name: next((n for n in names if n in built.names), names[0])
        for name, names in tied_names(built.model).items()
    }
