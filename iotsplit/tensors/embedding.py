"""Token embeddings that stay in their file: a part that only looks rows up does not hold the table."""

import os
import weakref

import torch
from torch import nn

from iotsplit.tensors.weights import DTYPES, TensorEntry


def can_stay(module: nn.Module, entry: TensorEntry) -> bool:
    """Whether a module does nothing but look rows up, and its table is of floats."""
    return type(module) is nn.Embedding and DTYPES[entry.dtype].is_floating_point


class RowsOfFile(nn.Embedding):
    """An embedding that reads the rows it needs, as float32.

    A memory-mapped table would do without a copy too, but not without memory: with a page that is touched the
    kernel maps those around it, and 2000 different tokens make 90 MB of SmolLM2's table of 113 MB resident.

    Args:
        table: (vocabulary, width), memory-mapped; it is never touched.
        entry: where it lies.
    """

    def __init__(self, table: torch.Tensor, entry: TensorEntry) -> None:
        super().__init__(table.shape[0], table.shape[1], _weight=table, _freeze=True)
        self._dtype = table.dtype
        self._start = entry.start
        self._row_bytes = table.shape[1] * table.element_size()
        self._file = _OpenFile(entry)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.Embedding's name for it
        """Look up: ids (batch, time) to (batch, time, width)."""
        ids, places = torch.unique(input, return_inverse=True)  # (different,), (batch, time)
        data = bytearray().join(self._row(index) for index in ids.tolist())
        rows = torch.frombuffer(data, dtype=self._dtype).view(len(ids), -1)  # (different, width)
        found: torch.Tensor = rows.to(torch.float32)[places]
        return found

    def _row(self, index: int) -> bytes:
        if not 0 <= index < self.num_embeddings:
            raise IndexError(f"token id {index} is not below {self.num_embeddings}")
        return os.pread(self._file.number, self._row_bytes, self._start + index * self._row_bytes)


class _OpenFile:
    """A file that is open as long as anybody has this, copies of a module included."""

    def __init__(self, entry: TensorEntry) -> None:
        self.number = os.open(entry.file, os.O_RDONLY)
        weakref.finalize(self, os.close, self.number)

    def __deepcopy__(self, memo: object) -> "_OpenFile":
        return self
