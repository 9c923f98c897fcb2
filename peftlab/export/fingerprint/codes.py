"""The codes and scales of 8-bit layers, by a sample of their rows, bit by bit.

A row's codes depend on that row alone. So a layer in memory, an 8-bit checkpoint, and a 16- or
32-bit one whose sampled rows are quantised again are all comparable, and must agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peftlab.export.safetensors_files import DTYPES, NAMES, Stored
from peftlab.model.quantized import SCALES
from peftlab_kernels.int8_format import int8_quantize
from peftlab_kernels.int8_linear import Int8Linear

_ROWS = 16

ROUNDED = (None, torch.bfloat16, torch.float16)
"""The dtypes that weights may have been rounded to before quantisation; None: not at all."""


def codes_of(layers: Mapping[str, nn.Module], base: Mapping[str, Stored]) -> dict[str, Any]:
    """The fingerprint of 8-bit layers in memory, by the checkpoint's keys of their weights.

    JSON values. Where the checkpoint has floats, `rounded` is the dtype that they were rounded to
    before quantisation, and a layer is `transposed` whose weight is stored as [K, N] (Conv1D):
    both are needed to compute the same codes again.
    """
    samples = {
        key: {"shape": list(layer.weight.shape), "sample": _hash(*_of_layer(layer))}
        for key, layer in sorted(layers.items())
        if isinstance(layer, Int8Linear)
    }
    codes: dict[str, Any] = {}
    for dtype in ROUNDED:
        rounded = None if dtype is None else NAMES[dtype]
        tensors = {
            key: sample | {"transposed": _is_transposed(key, sample, base, rounded)}
            for key, sample in samples.items()
        }
        codes = {"rounded": rounded, "tensors": tensors}
        if not differences(codes, base):
            return codes
    return codes | {"rounded": None}


def differences(
    known: Mapping[str, Any], base: Mapping[str, Stored], *, only: Iterable[str] | None = None
) -> tuple[str, ...]:
    """Sentences on the layers whose codes differ from the known ones over this checkpoint."""
    sentences = []
    wanted: Mapping[str, Any] = known["tensors"]
    rounded = known.get("rounded")
    for key in wanted if only is None else only:
        expected, stored = wanted[key], base.get(key)
        if stored is None:
            sentences.append(f"{key} is missing")
            continue
        scales = _scales_of(key, base)
        shape = tuple(expected["shape"])
        transposed = expected["transposed"] and scales is None
        if stored.shape != (shape[::-1] if transposed else shape):
            sentences.append(f"{key} is {list(stored.shape)}, and was {list(shape)}")
            continue
        try:
            rows = _stored_rows(stored, scales, transposed, rounded)
        except ValueError as error:
            sentences.append(f"{key} has no codes ({error})")
            continue
        if _hash(*rows) != expected["sample"]:
            sentences.append(f"{key} has other codes")
    return tuple(sentences)


def _is_transposed(
    key: str, sample: Mapping[str, Any], base: Mapping[str, Stored], rounded: str | None
) -> bool:
    """Decided by the codes: the shape of a square matrix does not reveal it."""
    transposed = {"rounded": rounded, "tensors": {key: {**sample, "transposed": True}}}
    return _scales_of(key, base) is None and not differences(transposed, base)


def _scales_of(key: str, base: Mapping[str, Stored]) -> Stored | None:
    return base.get(f"{key.removesuffix('.weight')}{SCALES}")


def _of_layer(layer: Int8Linear) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    rows = _sampled(layer.weight.shape[0])
    codes, scales = (t.detach()[rows].cpu() for t in (layer.weight, layer.SCB))
    return codes, scales, tuple(layer.weight.shape)


def _stored_rows(
    stored: Stored, scales: Stored | None, transposed: bool, rounded: str | None
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    shape = stored.shape[::-1] if transposed else stored.shape
    rows = _sampled(shape[0])
    # Columns are not contiguous in a file, so a transposed weight is read completely.
    values = stored.read().T[rows] if transposed else stored.rows(rows)
    if scales is not None:
        return values, scales.read()[rows], shape
    if rounded is not None:
        values = values.to(DTYPES[rounded])
    return *int8_quantize(values.contiguous()), shape


def _hash(codes: Tensor, scales: Tensor, shape: tuple[int, ...]) -> str:
    digest = hashlib.sha256(f"{shape}".encode())
    digest.update(codes.contiguous().numpy().tobytes())
    digest.update(scales.float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def _sampled(count: int) -> list[int]:
    """Rows spread evenly from first to last."""
    return sorted({i * (count - 1) // (_ROWS - 1) for i in range(_ROWS)}) if count else []
