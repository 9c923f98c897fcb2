"""What a base is, by its tensors: so that an adapter meets no other base than its own.

Taken from the tensors as the checkpoint stores them and under its names, so neither the sharding
nor the folder matters: dtype, shape, and a hash of some of the bytes, spread over each tensor. Of
layers in 8 bits the codes and scales that were trained on as well, whether the checkpoint
has them or they were made of what it has: see `codes`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from peftlab.export.safetensors_files import Stored

FORMAT = 2
"""1 knew no codes."""

_PIECES = 16
_PIECE = 4096


def fingerprint(tensors: Mapping[str, Stored]) -> dict[str, Any]:
    """Of these tensors, by the checkpoint's names; JSON values."""
    return {
        "format": FORMAT,
        "tensors": {
            name: {"dtype": t.dtype, "shape": list(t.shape), "sample": sampled_hash(t)}
            for name, t in sorted(tensors.items())
        },
    }


def sampled_hash(tensor: Stored) -> str:
    """Half a SHA-256 of up to 64 KiB of a tensor's bytes, spread evenly from first to last."""
    digest = hashlib.sha256(f"{tensor.dtype}{tensor.shape}".encode())
    with tensor.file.open("rb", buffering=0) as file:
        for start in _starts(tensor.size):
            file.seek(tensor.start + start)
            digest.update(file.read(min(_PIECE, tensor.size - start)))
    return digest.hexdigest()[:32]


def differences(
    known: Mapping[str, Any], base: Mapping[str, Stored], *, only: Iterable[str] | None = None
) -> tuple[str, ...]:
    """Sentences on a base's tensors that are not those of a fingerprint; none where all are."""
    told = []
    wanted: Mapping[str, Any] = known.get("tensors", {})
    for name in wanted if only is None else only:
        expected, found = wanted[name], base.get(name)
        if found is None:
            told.append(f"{name} is missing")
        elif list(found.shape) != expected["shape"]:
            told.append(f"{name} is {list(found.shape)}, and was {expected['shape']}")
        elif found.dtype != expected["dtype"]:
            told.append(f"{name} is {found.dtype}, and was {expected['dtype']}")
        elif sampled_hash(found) != expected["sample"]:
            told.append(f"{name} has other values")
    return tuple(told)


def _starts(size: int) -> Iterable[int]:
    if size <= _PIECES * _PIECE:
        return range(0, size, _PIECE)
    last = size - _PIECE
    return (i * last // (_PIECES - 1) for i in range(_PIECES))
