"""Reads the safetensors files of a model directory, one tensor at a time, without copying them."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from iotsplit.errors import UsageError

_LENGTH = struct.Struct("<Q")
_HEADER_LIMIT_BYTES = 100 << 20  # the format's own limit
_EDGE_BYTES = 64


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
        """Yield ``(key, tensor)`` for each ``key: name in the files``, memory-mapped, as stored."""
        by_file: dict[Path, list[tuple[str, str]]] = {}
        for key, name in names.items():
            by_file.setdefault(self.entries[name].file, []).append((key, name))
        for file, wanted in by_file.items():
            with safe_open(file, framework="pt") as tensors:
                for key, name in wanted:
                    yield key, tensors.get_tensor(name)


def _files(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names = set(json.loads(index.read_text())["weight_map"].values())
        return sorted(directory / name for name in names)
    return sorted(directory.glob("*.safetensors"))


def _entries(file: Path) -> Iterator[tuple[str, TensorEntry]]:
    try:
        with file.open("rb") as stream:
            (length,) = _LENGTH.unpack(stream.read(_LENGTH.size))
            header = json.loads(stream.read(min(length, _HEADER_LIMIT_BYTES)))
    except (OSError, struct.error, ValueError) as error:
        raise UsageError(f"{file} cannot be read: {error}", fix="fetch the model again") from None
    base = _LENGTH.size + length
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        yield (
            name,
            TensorEntry(
                file=file,
                dtype=entry["dtype"],
                shape=tuple(entry["shape"]),
                start=base + start,
                end=base + end,
            ),
        )
