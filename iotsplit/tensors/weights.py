"""Reads the safetensors files of a model directory without copying them."""

import json
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from iotsplit.errors import UsageError

_LENGTH = struct.Struct("<Q")
_HEADER_LIMIT_BYTES = 100 << 20  # the format's own limit
_EDGE_BYTES = 64
_COPIED_BYTES = 64 << 10
_MAPPED_BYTES = 16 << 20
_MAPPINGS = 64
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""What the types are called in a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """Where one tensor lies: ``[start, end)`` bytes of ``file``."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def elements(self) -> int:
        """Number of values."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    def within(self, pages: mmap.mmap | bytes, begin: int) -> torch.Tensor:
        """The tensor as it lies in a mapping of its file that begins at byte `begin`; a copy if it is small.

        Raises:
            UsageError: it is of a type that nothing here computes with.
        """
        if self.dtype not in DTYPES:
            raise UsageError(
                f"{self.file} has tensors of type {self.dtype}", fix="use a model of float32 or bf16"
            )
        dtype = DTYPES[self.dtype]
        if not self.elements:
            return torch.empty(self.shape, dtype=dtype)
        flat = torch.frombuffer(pages, dtype=dtype, offset=self.start - begin, count=self.elements)
        tensor = flat.view(self.shape)
        return tensor.clone() if tensor.nbytes <= _COPIED_BYTES else tensor

    def edges(self) -> bytes:
        """The first and the last 64 bytes of the data, which tell two trainings apart."""
        with self.file.open("rb") as stream:
            stream.seek(self.start)
            first = stream.read(min(_EDGE_BYTES, self.end - self.start))
            stream.seek(max(self.start, self.end - _EDGE_BYTES))
            return first + stream.read(self.end - stream.tell() if self.end > self.start else 0)


class Weights:
    """The tensors of a directory by name; sharded or in one file.

    Raises:
        UsageError: there are no safetensors, or a file is damaged.
    """

    def __init__(self, directory: Path) -> None:
        files = _files(directory)
        if not files:
            raise UsageError(
                f"{directory} holds no safetensors",
                fix="name a model directory with config.json and *.safetensors",
            )
        self.directory = directory
        self.entries: dict[str, TensorEntry] = {}
        for file in files:
            self.entries.update(_entries(file))

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def load(self, names: dict[str, str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield ``(key, tensor)`` for each ``key: name in the files``, memory-mapped, in their order there.

        Neighbours share a mapping, because each holds a file descriptor, of which a process has 1024 or so. Its
        pages go when all of them are dropped; small ones are copied, lest they hold the pages of large ones.

        Raises:
            UsageError: a tensor is of a type that nothing here computes with.
        """
        for together in self._neighbours(names):
            first = together[0][1]
            begin = first.start - first.start % mmap.ALLOCATIONGRANULARITY
            pages = _mapping(first.file, begin, max(entry.end for _, entry in together))
            for key, entry in together:
                yield key, entry.within(pages, begin)

    def _neighbours(self, names: dict[str, str]) -> list[list[tuple[str, TensorEntry]]]:
        found = {key: self.entries[name] for key, name in names.items()}
        size_bytes = sum(entry.end - entry.start for entry in found.values())
        longest = max(_MAPPED_BYTES, size_bytes // _MAPPINGS)
        groups: list[list[tuple[str, TensorEntry]]] = []
        for key, entry in sorted(found.items(), key=lambda item: (item[1].file, item[1].start)):
            first = groups[-1][0][1] if groups else None
            if first is None or entry.file != first.file or entry.end - first.start > longest:
                groups.append([])
            groups[-1].append((key, entry))
        return groups


def _mapping(file: Path, begin: int, end: int) -> mmap.mmap | bytes:
    if end == begin:  # what has no values has no bytes, and nothing maps none
        return b""
    with file.open("rb") as stream:
        return mmap.mmap(stream.fileno(), end - begin, access=mmap.ACCESS_COPY, offset=begin)


def _files(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(directory.glob("*.safetensors"))
    try:
        return sorted({directory / name for name in json.loads(index.read_text())["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(index, error) from None


def _entries(file: Path) -> dict[str, TensorEntry]:
    try:
        size_bytes = file.stat().st_size
        with file.open("rb") as stream:
            (length,) = _LENGTH.unpack(stream.read(_LENGTH.size))
            header = json.loads(stream.read(min(length, _HEADER_LIMIT_BYTES)))
        base = _LENGTH.size + length
        entries = {name: _entry(file, base, told) for name, told in header.items() if name != "__metadata__"}
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(file, error) from None
    whole_bytes = max((entry.end for entry in entries.values()), default=base)
    if size_bytes < whole_bytes:
        raise _damaged(file, f"it ends after {size_bytes} of {whole_bytes} bytes")
    return entries


def _entry(file: Path, base: int, told: dict[str, Any]) -> TensorEntry:
    start, end = told["data_offsets"]
    shape = tuple(told["shape"])
    return TensorEntry(file=file, dtype=told["dtype"], shape=shape, start=base + start, end=base + end)


def _damaged(file: Path, reason: object) -> UsageError:
    return UsageError(f"{file} cannot be read: {reason}", fix="fetch the model again")
