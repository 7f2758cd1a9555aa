"""Few bits a value: blocks of 64 channels, rotated by a Hadamard matrix, with one scale each.

Activations have a few channels that are many times larger than the others; with one scale for all, nothing is
left of the rest. The rotation spreads each over its block (QuaRot, arXiv 2404.00456), so that a symmetric grid
fits all of them. It is its own inverse and does not depend on the data: nothing of it is sent. Where a grid is
too coarse even so, the strongest channels of a tensor are sent apart, and the others rotated without them.

Layout of (tokens, width), little-endian; blocks = ceil(width / 64), the last one padded with zeros; apart =
the scheme's number of channels that are sent apart, or the width if that is less:

- apart channel numbers, 16 bits each, ascending;
- tokens x apart values of these channels, each the upper half of a float32 (bf16);
- tokens x blocks scales, bf16, of a block's largest rotated magnitude / 127 (8 bits) or / 7 (4);
- the rotated values of each block: 64 bytes, two's complement (8 bits); or 32 bytes, channels 2i (low four
  bits) and 2i + 1, each plus 8 (4 bits).

Apart are those whose largest magnitude over all tokens is the largest; of equal ones the first.
``H x`` is computed in float32 by six stages, k = 0 to 5: of each two channels i and i + 2^k, where bit k of
i is 0, the first becomes their sum and the second their difference. So all machines write the same bytes.
Value = ``H x`` / (8 scale), rounded half to even.

A block is read as ``H q * scale / 8``: H has +1 and -1 where the number of common one bits of row and column
is even and odd. ``H q`` is a sum of small integers and so exact: everybody reads the same float32 values.
Then the channels that came apart are put in.

The error of a block has a Euclidean norm of at most 4.2 times its scale: half a step in each rotated channel,
a little more in the largest because the scale is rounded.
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from iotsplit.errors import NotFiniteError, TensorRefusedError

BLOCK = 64
NIBBLE = 4
_OFFSET = 8  # of stored four bits
_ROOT = 8.0  # of BLOCK: the matrix of +1 and -1, divided by it, is orthogonal
_LARGEST_SCALES = 4.2  # of the error of a block
_BF16 = 2.0**-8  # relative error of a value that is sent apart, and to spare

Values = NDArray[np.float32]


@dataclass(frozen=True)
class Rotated:
    """A number of bits, and what is sent apart.

    Args:
        bits: of a rotated value, 4 or 8.
        apart: channels of a tensor that are sent apart.
    """

    bits: int
    apart: int

    @property
    def largest(self) -> int:
        """Of the grid; the least number that the bits can hold stays unused, so that it is symmetric."""
        return (1 << (self.bits - 1)) - 1

    @property
    def largest_error(self) -> float:
        """Relative to the norm: a scale is at most 1/`largest` of the norm of its block."""
        return max(_LARGEST_SCALES / self.largest, _BF16)

    def size_bytes(self, tokens: int, width: int) -> int:
        """Length of the data of (tokens, width)."""
        apart = self._apart(width)
        return 2 * apart * (1 + tokens) + tokens * _blocks(width) * (2 + self._block_bytes)

    def pack(self, values: torch.Tensor) -> bytes:
        """Pack contiguous float32 values of shape (tokens, width).

        Raises:
            NotFiniteError: a scale, or a value that is sent apart, is not finite.
        """
        matrix = values.numpy()
        channels = strongest(matrix, self.apart)
        rotated = rotate(columns(matrix, channels))  # (64, tokens x blocks)
        largest = np.abs(np.maximum(rotated.max(axis=0), -rotated.min(axis=0)))  # no -0: one zero for all
        scales = to_bf16(largest / np.float32(self.largest * _ROOT))
        steps = from_bf16(scales) * np.float32(_ROOT)
        # A block of zeros has scale 0, and 0 / 1 is as good as any.
        rotated /= np.where(steps > 0, steps, np.float32(1))
        np.rint(rotated, out=rotated)
        np.clip(rotated, -self.largest, self.largest, out=rotated)
        parts = (channels.astype("<u2"), to_bf16(matrix[:, channels]), scales, self._stored(rotated))
        return b"".join(part.data for part in parts)

    def unpack(self, data: bytes, tokens: int, width: int) -> Values:
        """Unpack data of the right length to (tokens, width) values.

        Raises:
            NotFiniteError: a scale, or a value that came apart, is not finite.
            TensorRefusedError: channel numbers that are not ascending, or outside of the width.
        """
        apart, count = self._apart(width), tokens * _blocks(width)
        halves = np.frombuffer(data, "<u2", count=apart * (1 + tokens) + count)
        channels = halves[:apart].astype(np.int64)
        if apart and (channels[-1] >= width or (np.diff(channels) <= 0).any()):
            raise TensorRefusedError("channels that are not ascending, or outside of the width")
        strong, scales = np.split(from_bf16(halves[apart:]), [tokens * apart])
        if not (np.isfinite(strong).all() and np.isfinite(scales).all()):
            raise NotFiniteError("tensor received")
        rotated = self._read(data, offset=halves.nbytes, count=count)
        rotated *= torch.from_numpy(scales / np.float32(_ROOT)).unsqueeze(1)
        padded = rotated.reshape(tokens, _blocks(width) * BLOCK)
        values: Values = padded[:, :width].contiguous().numpy()
        values[:, channels] = strong.reshape(tokens, apart)
        return values

    @property
    def _block_bytes(self) -> int:
        return BLOCK * self.bits // 8

    def _apart(self, width: int) -> int:
        return min(self.apart, width)

    def _stored(self, rotated: Values) -> NDArray[Any]:
        """Whole numbers (64, blocks) as (blocks, bytes)."""
        if self.bits != NIBBLE:
            return rotated.astype(np.int8).T.copy(order="C")
        rotated += _OFFSET
        whole = rotated.astype(np.uint8)
        return (whole[0::2] | (whole[1::2] << 4)).T.copy(order="C")

    def _read(self, data: bytes, *, offset: int, count: int) -> torch.Tensor:
        """``H q`` of each block: (count, 64), sums of integers, and so exact in any order."""
        stored = np.frombuffer(data, np.uint8, offset=offset).reshape(count, self._block_bytes)
        if self.bits != NIBBLE:
            return torch.from_numpy(stored.view(np.int8).astype(np.float32)) @ hadamard()
        halves = np.empty((count, BLOCK), np.float32)  # first all even channels, then all odd ones
        halves[:, : BLOCK // 2] = stored & 15
        halves[:, BLOCK // 2 :] = stored >> 4
        sums = torch.from_numpy(halves) @ _hadamard_by_halves()
        sums[:, 0] -= _OFFSET * BLOCK  # the offset of all is in channel 0 alone
        return sums


def strongest(matrix: Values, most: int) -> NDArray[np.int64]:
    """Numbers of the channels whose largest magnitude in (tokens, width) is the largest, ascending."""
    tokens, width = matrix.shape
    count = min(most, width)
    if not count or not tokens:
        return np.arange(count)
    largest = np.maximum(matrix.max(axis=0), -matrix.min(axis=0))
    return np.sort(np.argsort(-largest, kind="stable")[:count])


def to_bf16(values: Values) -> NDArray[np.uint16]:
    """The nearest upper halves of float32, ties to even.

    Raises:
        NotFiniteError: one of them is NaN or infinite.
    """
    halves = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)
    if not torch.isfinite(halves).all():
        raise NotFiniteError("tensor to send, as int8 or int4,")
    return halves.view(torch.int16).numpy().view(np.uint16).astype("<u2", copy=False)


def from_bf16(halves: NDArray[np.uint16]) -> Values:
    """Float32 values of upper halves."""
    return (halves.astype(np.uint32) << np.uint32(16)).view(np.float32)


def columns(matrix: Values, apart: NDArray[np.int64]) -> Values:
    """The blocks of (tokens, width) as columns of a new array, zeros where it is padded and where `apart`."""
    tokens, width = matrix.shape
    padded = matrix
    if width % BLOCK:
        padded = np.zeros((tokens, _blocks(width) * BLOCK), np.float32)
        padded[:, :width] = matrix
    blocks = padded.reshape(-1, BLOCK).T.copy(order="C")
    for channel in apart:
        blocks[channel % BLOCK, channel // BLOCK :: _blocks(width)] = 0
    return blocks


def rotate(blocks: Values) -> Values:
    """H times each column (not divided by 8); takes the array over.

    A matrix product would add up in an order that depends on the machine's kernels.
    """
    here, there = blocks, np.empty_like(blocks)
    with np.errstate(over="ignore", invalid="ignore"):  # found in the scales
        for stage in range(BLOCK.bit_length() - 1):
            pairs = (BLOCK >> (stage + 1), 2, 1 << stage, -1)
            first, second = here.reshape(pairs).swapaxes(0, 1)
            sums, differences = there.reshape(pairs).swapaxes(0, 1)
            np.add(first, second, out=sums)
            np.subtract(first, second, out=differences)
            here, there = there, here
    return here


def _blocks(width: int) -> int:
    return -(-width // BLOCK)


@functools.cache
def hadamard() -> torch.Tensor:
    """The symmetric (64, 64) matrix of +1 and -1 (Sylvester)."""
    matrix = torch.ones(1, 1)
    for _ in range(BLOCK.bit_length() - 1):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


@functools.cache
def _hadamard_by_halves() -> torch.Tensor:
    """Its rows in the order of the bytes: first the even ones, then the odd ones."""
    return torch.cat([hadamard()[0::2], hadamard()[1::2]])
