"""Four bits a value: blocks of 64 channels, rotated by a Hadamard matrix, with one scale each.

Activations have a few channels that are many times larger than the others; with one scale for all, nothing is
left of the rest. The rotation spreads each over its block (QuaRot, arXiv 2404.00456), so that a symmetric
grid of 15 steps fits all of them. It is its own inverse and does not depend on the data: nothing of it is sent.

Layout of (tokens, width), little-endian, blocks = ceil(width / 64), the last one padded with zeros:

- tokens x blocks scales, each the upper half of a float32 (bf16), of a block's largest rotated magnitude / 7;
- tokens x blocks x 32 bytes: the rotated values of channels 2i (low four bits) and 2i + 1, each plus 8.

``H x`` is computed in float32 by six stages, k = 0 to 5: of each two channels i and i + 2^k, where bit k of
i is 0, the first becomes their sum and the second their difference. So all machines write the same bytes.
Value = ``H x`` / (8 scale), rounded half to even.

A block is read as ``H q * scale / 8``: H has +1 and -1 where the number of common one bits of row and column
is even and odd. ``H q`` is a sum of small integers and so exact: everybody reads the same float32 values.

The error of a block has a Euclidean norm of at most 4.2 times its scale: half a step in each rotated channel,
a little more in the largest because the scale is rounded.
"""

import functools

import numpy as np
import torch
from numpy.typing import NDArray

from iotsplit.errors import NotFiniteError

BLOCK = 64
LARGEST = 7  # -8 stays unused, so that the range is symmetric
LARGEST_ERROR = 4.2 / LARGEST  # relative: a scale is at most 1/7 of the norm of its block
_OFFSET = 8  # of the stored four bits
_ROOT = 8.0  # of BLOCK: the matrix of +1 and -1, divided by it, is orthogonal


def size_bytes(tokens: int, width: int) -> int:
    """Length of the data of (tokens, width)."""
    return tokens * _blocks(width) * (2 + BLOCK // 2)


def pack(values: torch.Tensor) -> bytes:
    """Pack contiguous float32 values of shape (tokens, width).

    Raises:
        NotFiniteError: a scale is not finite.
    """
    rotated = _rotate(_columns(values))  # (64, tokens x blocks)
    largest = np.maximum(rotated.max(axis=0), -rotated.min(axis=0))
    scales = torch.from_numpy(largest / np.float32(LARGEST * _ROOT)).to(torch.bfloat16)
    if not torch.isfinite(scales).all():
        raise NotFiniteError("tensor to send, as int4,")
    steps = scales.to(torch.float32).numpy() * np.float32(_ROOT)
    # A block of zeros has scale 0, and 0 / 1 is as good as any.
    rotated /= np.where(steps > 0, steps, np.float32(1))
    np.rint(rotated, out=rotated)
    np.clip(rotated, -LARGEST, LARGEST, out=rotated)
    rotated += _OFFSET
    stored = rotated.astype(np.uint8)
    pairs = stored[0::2] | (stored[1::2] << 4)  # (32, tokens x blocks)
    upper = scales.view(torch.int16).numpy().astype("<i2", copy=False)
    return b"".join((upper.data, np.ascontiguousarray(pairs.T).data))


def unpack(data: bytes, tokens: int, width: int) -> NDArray[np.float32]:
    """Unpack data of the right length to (tokens, width) values.

    Raises:
        NotFiniteError: a scale is not finite.
    """
    count = tokens * _blocks(width)
    scales = (np.frombuffer(data, "<u2", count=count).astype(np.uint32) << np.uint32(16)).view(np.float32)
    if not np.isfinite(scales).all():
        raise NotFiniteError("tensor received")
    pairs = np.frombuffer(data, np.uint8, offset=2 * count).reshape(count, BLOCK // 2)
    stored = np.empty((count, BLOCK), np.float32)  # first all even channels, then all odd ones
    stored[:, : BLOCK // 2] = pairs & 15
    stored[:, BLOCK // 2 :] = pairs >> 4
    rotated = torch.from_numpy(stored) @ _hadamard_by_halves()  # sums of integers: exact in any order
    rotated[:, 0] -= _OFFSET * BLOCK  # the offset of all is in channel 0 alone
    rotated *= torch.from_numpy(scales / np.float32(_ROOT)).unsqueeze(1)
    values: NDArray[np.float32] = (
        rotated.reshape(tokens, _blocks(width) * BLOCK)[:, :width].contiguous().numpy()
    )
    return values


def _columns(values: torch.Tensor) -> NDArray[np.float32]:
    """The blocks of (tokens, width) as columns of a new array, padded with zeros."""
    tokens, width = values.shape
    padded = values.numpy()
    if width % BLOCK:
        padded = np.zeros((tokens, _blocks(width) * BLOCK), np.float32)
        padded[:, :width] = values.numpy()
    return padded.reshape(-1, BLOCK).T.copy(order="C")


def _rotate(columns: NDArray[np.float32]) -> NDArray[np.float32]:
    """H times each column (not divided by 8); takes the array over.

    A matrix product would add up in an order that depends on the machine's kernels.
    """
    here, there = columns, np.empty_like(columns)
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
