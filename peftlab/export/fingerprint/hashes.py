"""Fingerprints of a base by its tensors, so that an adapter is used on its own base only.

Taken from the tensors as the checkpoint stores and names them, so neither sharding nor folder
matters: dtype, shape, and a hash of some of the bytes, spread over each tensor. For 8-bit layers
also the codes and scales that were trained on, stored in the checkpoint or quantised from it: see
`codes`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from peftlab.export.safetensors_files import Stored

FORMAT = 2
"""Format 1 had no codes."""

_PIECES = 16
_PIECE = 4096


def fingerprint(tensors: Mapping[str, Stored]) -> dict[str, Any]:
    """The fingerprint of tensors, by the checkpoint's names; JSON values."""
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
    """Sentences on a base's tensors that differ from a fingerprint's."""
    sentences = []
    wanted: Mapping[str, Any] = known.get("tensors", {})
    for name in wanted if only is None else only:
        expected, stored = wanted[name], base.get(name)
        if stored is None:
            sentences.append(f"{name} is missing")
        elif list(stored.shape) != expected["shape"]:
            sentences.append(f"{name} is {list(stored.shape)}, and was {expected['shape']}")
        elif stored.dtype != expected["dtype"]:
            sentences.append(f"{name} is {stored.dtype}, and was {expected['dtype']}")
        elif sampled_hash(stored) != expected["sample"]:
            sentences.append(f"{name} has other values")
    return tuple(sentences)


def _starts(size: int) -> Iterable[int]:
    if size <= _PIECES * _PIECE:
        return range(0, size, _PIECE)
    last = size - _PIECE
    return (i * last // (_PIECES - 1) for i in range(_PIECES))
