"""Safetensors files byte by byte: the location of each tensor, and streamed writing.

The format (github.com/huggingface/safetensors): eight bytes with the length of a JSON header, the
header with every tensor's dtype, shape and offsets, then the bytes of the tensors.
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

_FLUSHED = 64 * 1024 * 1024
"""Bytes that are flushed to the disk together."""

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
        """The tensor in new memory, or in `into`, contiguous and of its shape and dtype.

        Raises `CheckFailed` where the file is truncated.
        """
        if self.dtype not in DTYPES:
            raise CheckFailed(f"{self.file} holds {self.dtype}, a dtype that is not supported.")
        tensor = torch.empty(self.shape, dtype=DTYPES[self.dtype]) if into is None else into
        if not self.size:
            return tensor
        view = _bytes_of(tensor)
        with self.file.open("rb") as file:
            file.seek(self.start)
            if file.readinto(view) != self.size:
                raise CheckFailed(f"{self.file} is truncated; download it again.")
        return tensor

    def rows(self, numbers: Sequence[int]) -> torch.Tensor:
        """Rows of a matrix [N, K] as [len(numbers), K]; `numbers` increase. Raises as `read`."""
        width = self.size // self.shape[0] if self.shape[0] else 0
        parts = [
            Stored(self.file, self.dtype, self.shape[1:], at, at + width).read()
            for at in (self.start + number * width for number in numbers)
        ]
        return torch.stack(parts) if parts else self.read()

    def chunks(self) -> Iterator[bytes]:
        """Its bytes as stored. Raises `CheckFailed` where the file is truncated."""
        left = self.size
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.start)
            while left:
                chunk = file.read(min(CHUNK, left))
                if not chunk:
                    raise CheckFailed(f"{self.file} is truncated; download it again.")
                left -= len(chunk)
                yield chunk


def stored_tensors(file: Path) -> dict[str, Stored]:
    """Every tensor of a file by name, in the order of their bytes.

    Raises `CheckFailed` where the file is not a complete safetensors file.
    """
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            size = os.fstat(opened.fileno()).st_size
            if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
                raise ValueError("its header has an impossible length")
            header: dict[str, Any] = json.loads(opened.read(length))
        header.pop(_METADATA, None)
        tensors = {
            name: Stored(
                file, entry["dtype"], tuple(entry["shape"]),
                8 + length + entry["data_offsets"][0], 8 + length + entry["data_offsets"][1],
            )
            for name, entry in header.items()
        }  # fmt: skip
        for name, tensor in tensors.items():
            scalars = math.prod(tensor.shape)
            known = DTYPES.get(tensor.dtype)
            if tensor.stop > size or tensor.size < 0 or tensor.start < 8 + length:
                raise ValueError(f"{name} is beyond its end")
            if known is not None and tensor.size != scalars * known.itemsize:
                raise ValueError(f"{name} has a size that does not match its shape")
            if any(length < 0 for length in tensor.shape):
                raise ValueError(f"{name} has a size that does not match its shape")
        in_order = sorted(tensors.items(), key=lambda entry: (entry[1].start, entry[1].stop))
        for (name, tensor), (following, other) in pairwise(in_order):
            if other.start < tensor.stop:
                raise ValueError(f"{name} and {following} overlap")
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckFailed(f"{file} is not a complete safetensors file ({error}).") from None
    return dict(in_order)


def stored_in(files: Iterable[Path]) -> dict[str, Stored]:
    """Every tensor of a checkpoint's files by name. Raises `CheckFailed` as `stored_tensors`."""
    return {name: tensor for file in files for name, tensor in stored_tensors(file).items()}


@dataclass(frozen=True, slots=True)
class Spec:
    """A tensor that will be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


class Writer:
    """Writes the bytes of the announced tensors, in that order.

    A separate thread writes one piece at a time while the next is computed.
    """

    def __init__(self, file: RawIOBase, specs: Sequence[Spec], thread: Executor) -> None:
        self._file = file
        self._thread = thread
        self._pending: Future[None] | None = None
        self._waiting = list(specs)
        self._unflushed = 0

    def head(self, data: bytes) -> None:
        """Write the header, before all tensors."""
        self._write(data)

    def tensor(self, name: str, tensor: torch.Tensor) -> None:
        """Write a tensor. Raises `ValueError` where it is not the announced one."""
        spec = self._next(name)
        if NAMES.get(tensor.dtype) != spec.dtype or tuple(tensor.shape) != spec.shape:
            raise ValueError(
                f"{name} was announced as {spec.dtype} {spec.shape} and is {tensor.dtype} "
                f"{tuple(tensor.shape)}"
            )
        if spec.size:
            self._write(_bytes_of(tensor.detach().contiguous()))

    def copy(self, name: str, source: Stored, seen: Callable[[bytes], object]) -> None:
        """Write the bytes of a stored tensor unchanged, and pass each chunk to `seen`."""
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
        """Wait until all data is written. Raises what writing raised."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _write_all(self, data: Any) -> None:
        # Unbuffered, in large pieces: Python's own buffer would copy them again.
        left = memoryview(data)
        while left:
            written = self._file.write(left) or 0
            left = left[written:]
            self._unflushed += written
        if self._unflushed >= _FLUSHED:
            self.flush()

    def flush(self) -> None:
        """Flush written data to the disk, and drop it from the page cache.

        The disk then works from the first piece on, a model larger than memory does not evict what
        others keep there, and reading the file again reads the disk.
        """
        handle = self._file.fileno()
        os.fsync(handle)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        self._unflushed = 0

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
    """The memory of a contiguous tensor, one byte per element."""
    return tensor.view(-1).view(torch.uint8).numpy()


def _allocate(handle: int, size: int) -> None:
    """Allocate a file's space on the disk, where the file system supports it.

    A full disk is then detected at the start, not at the last tensor.
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
    """Write a file of these tensors, which is on the disk when the block succeeds."""
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
        _allocate(file.fileno(), 8 + len(text) + end)
        writer = Writer(file, specs, thread)
        writer.head(len(text).to_bytes(8, "little") + text)
        yield writer
        writer.wait()
        writer.flush()
        writer.close()
