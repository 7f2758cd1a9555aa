"""Reads the safetensors files of a model directory, one tensor at a time, without copying them."""

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

    def mapped(self) -> torch.Tensor:
        """The tensor, memory-mapped by itself: when it is dropped, its pages go.

        Raises:
            UsageError: it is of a type that nothing here computes with.
        """
        if self.dtype not in DTYPES:
            raise UsageError(
                f"{self.file} has tensors of type {self.dtype}", fix="use a model of float32 or bf16"
            )
        if not self.elements:
            return torch.empty(self.shape, dtype=DTYPES[self.dtype])
        before = self.start % mmap.ALLOCATIONGRANULARITY
        with self.file.open("rb") as stream:
            pages = mmap.mmap(
                stream.fileno(),
                self.end - self.start + before,
                access=mmap.ACCESS_COPY,
                offset=self.start - before,
            )
        flat = torch.frombuffer(pages, dtype=DTYPES[self.dtype], offset=before, count=self.elements)
        return flat.view(self.shape)

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
        """Yield ``(key, tensor)`` for each ``key: name in the files``, memory-mapped, as stored.

        Raises:
            UsageError: a tensor is of a type that nothing here computes with.
        """
        for key, name in names.items():
            yield key, self.entries[name].mapped()


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
