"""Safetensors files byte by byte: where each tensor lies, and files written as their bytes come.

The format (github.com/huggingface/safetensors): eight bytes with the length of a JSON header, the
header with every tensor's dtype, shape and place, then the bytes of the tensors.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import RawIOBase
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from peftlab.errors import CheckFailed

CHUNK = 16 * 1024 * 1024
"""Bytes read or written at a time."""

_SENT = 64 * 1024 * 1024
"""Bytes that are sent to the disk together."""

_LONGEST_HEADER = 100_000_000
_METADATA = "__metadata__"

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""torch's dtypes by safetensors' names."""

NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file: dtype in safetensors' spelling, shape, bytes from `start` to `stop`."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.stop - self.start

    def read(self, into: torch.Tensor | None = None) -> torch.Tensor:
        """The tensor in memory of its own, or in `into`, contiguous and of its shape and dtype.

        Raises `CheckFailed` where the file is cut short.
        """
        if self.dtype not in DTYPES:
            raise CheckFailed(f"{self.file} holds {self.dtype}, a dtype that is not read here.")
        found = torch.empty(self.shape, dtype=DTYPES[self.dtype]) if into is None else into
        if not self.size:
            return found
        view = _bytes_of(found)
        with self.file.open("rb") as file:
            file.seek(self.start)
            if file.readinto(view) != self.size:
                raise CheckFailed(f"{self.file} ends before its tensors do; fetch it again.")
        return found

    def rows(self, numbers: Sequence[int]) -> torch.Tensor:
        """Some rows of a matrix [N, K] as [len(numbers), K]; `numbers` rise. As `read` raises."""
        width = self.size // self.shape[0] if self.shape[0] else 0
        parts = [
            Stored(self.file, self.dtype, self.shape[1:], at, at + width).read()
            for at in (self.start + number * width for number in numbers)
        ]
        return torch.stack(parts) if parts else self.read()

    def chunks(self) -> Iterator[bytes]:
        """Its bytes as they lie there. Raises `CheckFailed` where the file is cut short."""
        left = self.size
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.start)
            while left:
                chunk = file.read(min(CHUNK, left))
                if not chunk:
                    raise CheckFailed(f"{self.file} ends before its tensors do; fetch it again.")
                left -= len(chunk)
                yield chunk


def stored_tensors(file: Path) -> dict[str, Stored]:
    """Every tensor of a file by name, in the order of their bytes.

    Raises `CheckFailed` where the file is no whole safetensors file.
    """
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            size = os.fstat(opened.fileno()).st_size
            if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
                raise ValueError("its header has an impossible length")
            header: dict[str, Any] = json.loads(opened.read(length))
        header.pop(_METADATA, None)
        found = {
            name: Stored(
                file, entry["dtype"], tuple(entry["shape"]),
                8 + length + entry["data_offsets"][0], 8 + length + entry["data_offsets"][1],
            )
            for name, entry in header.items()
        }  # fmt: skip
        for name, tensor in found.items():
            scalars = math.prod(tensor.shape)
            known = DTYPES.get(tensor.dtype)
            if tensor.stop > size or tensor.size < 0 or tensor.start < 8 + length:
                raise ValueError(f"{name} lies beyond its end")
            if known is not None and tensor.size != scalars * known.itemsize:
                raise ValueError(f"{name} has other bytes than its shape")
            if any(length < 0 for length in tensor.shape):
                raise ValueError(f"{name} has other bytes than its shape")
        in_order = sorted(found.items(), key=lambda entry: (entry[1].start, entry[1].stop))
        for (name, tensor), (following, other) in pairwise(in_order):
            if other.start < tensor.stop:
                raise ValueError(f"{name} and {following} overlap")
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckFailed(f"{file} is not a whole safetensors file ({error}).") from None
    return dict(in_order)


def stored_in(files: Iterable[Path]) -> dict[str, Stored]:
    """Every tensor of a checkpoint's files by name. Raises `CheckFailed` as `stored_tensors`."""
    return {name: tensor for file in files for name, tensor in stored_tensors(file).items()}


@dataclass(frozen=True, slots=True)
class Spec:
    """What a tensor will be, before it is there."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


class Writer:
    """Takes the bytes of the tensors that were announced, in that order.

    They are written by a thread of their own, one piece at a time, while the next is made.
    """

    def __init__(self, file: RawIOBase, specs: Sequence[Spec], thread: Executor) -> None:
        self._file = file
        self._thread = thread
        self._pending: Future[None] | None = None
        self._waiting = list(specs)
        self._unsent = 0

    def head(self, data: bytes) -> None:
        """Write what comes before all tensors."""
        self._write(data)

    def tensor(self, name: str, tensor: torch.Tensor) -> None:
        """Write a tensor. Raises `ValueError` where it is another than was announced."""
        spec = self._next(name)
        if NAMES.get(tensor.dtype) != spec.dtype or tuple(tensor.shape) != spec.shape:
            raise ValueError(
                f"{name} was announced as {spec.dtype} {spec.shape} and is {tensor.dtype} "
                f"{tuple(tensor.shape)}"
            )
        if spec.size:
            self._write(_bytes_of(tensor.detach().contiguous()))

    def copy(self, name: str, source: Stored, seen: Callable[[bytes], object]) -> None:
        """Write the bytes of a stored tensor as they are, and hand each chunk to `seen`."""
        spec = self._next(name)
        if (source.dtype, source.shape) != (spec.dtype, spec.shape):
            raise ValueError(f"{name} was announced as another tensor than {source}")
        for chunk in source.chunks():
            seen(chunk)
            self._write(chunk)

    def _write(self, data: Any) -> None:
        self.wait()
        self._pending = self._thread.submit(self._write_all, data)

    def wait(self) -> None:
        """Until all that was handed over is written. Raises what writing raised."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _write_all(self, data: Any) -> None:
        # Unbuffered, in large pieces: Python's own buffer copies them once more.
        left = memoryview(data)
        while left:
            written = self._file.write(left) or 0
            left = left[written:]
            self._unsent += written
        if self._unsent >= _SENT:
            self.send()

    def send(self) -> None:
        """Send what is written to the disk, and take no more room in the page cache for it.

        The disk is then busy from the first piece on, nothing that others keep in memory is pushed
        out by a model that is larger than it, and what is read again comes from the disk.
        """
        handle = self._file.fileno()
        os.fsync(handle)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        self._unsent = 0

    def _next(self, name: str) -> Spec:
        spec = self._waiting.pop(0)
        if spec.name != name:
            raise ValueError(f"{name} comes where {spec.name} was announced")
        return spec

    def close(self) -> None:
        """Raises `ValueError` where tensors are missing."""
        if self._waiting:
            raise ValueError(f"{self._waiting[0].name} was announced and never written")


def _bytes_of(tensor: torch.Tensor) -> Any:
    """The memory of a contiguous tensor, one byte an element."""
    return tensor.view(-1).view(torch.uint8).numpy()


def _claim(handle: int, size: int) -> None:
    """Claim a file's place on the disk, where it can be claimed.

    Room that is lacking is known before anything is made, not at the last tensor.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS):
            raise


@contextmanager
def written(path: Path, specs: Sequence[Spec], metadata: Mapping[str, str]) -> Iterator[Writer]:
    """Write a file of these tensors, which is on the disk when the block ends well."""
    header: dict[str, Any] = {_METADATA: dict(metadata)}
    end = 0
    for spec in specs:
        start, end = end, end + spec.size
        header[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as file, ThreadPoolExecutor(1) as thread:
        _claim(file.fileno(), 8 + len(text) + end)
        writer = Writer(file, specs, thread)
        writer.head(len(text).to_bytes(8, "little") + text)
        yield writer
        writer.wait()
        writer.send()
        writer.close()
