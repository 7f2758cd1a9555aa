"""Four bits a value: blocks of 64 channels, rotated by a Hadamard matrix, with one scale each.

Activations have a few channels that are many times larger than the others; with one scale for all, nothing is
left of the rest. The rotation spreads each over its block (QuaRot, arXiv 2404.00456), so that a symmetric
grid of 15 steps fits all of them. It is its own inverse and does not depend on the data: nothing of it is sent.

Layout of (tokens, width), little-endian, blocks = ceil(width / 64), the last one padded with zeros:

- tokens x blocks scales, each the upper half of a float32 (bf16), of a block's largest rotated magnitude / 7;
- tokens x blocks x 32 bytes: the rotated values of channels 2i (low four bits) and 2i + 1, each plus 8.

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
_OFFSET = 8  # of the stored four bits
_ROOT = 8.0  # of BLOCK: the matrix of +1 and -1, divided by it, is orthogonal


def size_bytes(tokens: int, width: int) -> int:
    """Length of the data of (tokens, width)."""
    return tokens * _blocks(width) * (2 + BLOCK // 2)


def pack(values: torch.Tensor) -> bytes:
    """Pack float32 values of shape (tokens, width).

    Raises:
        NotFiniteError: a scale is not finite.
    """
    width = values.shape[1]
    padded = torch.nn.functional.pad(values, (0, _blocks(width) * BLOCK - width))
    rotated = padded.reshape(-1, BLOCK) @ (_hadamard() / _ROOT)  # (tokens x blocks, 64)
    scales = (rotated.abs().amax(dim=1, keepdim=True) / LARGEST).to(torch.bfloat16)
    if not torch.isfinite(scales).all():
        raise NotFiniteError("tensor to send, as int4,")
    steps = scales.to(torch.float32)
    # A block of zeros has scale 0, and 0 / 1 is as good as any.
    whole = rotated.div_(torch.where(steps > 0, steps, 1.0)).round_().clamp_(-LARGEST, LARGEST).add_(_OFFSET)
    stored = whole.to(torch.uint8)
    bytes_ = stored[:, 0::2] | (stored[:, 1::2] << 4)  # (tokens x blocks, 32)
    return scales.view(torch.int16).numpy().astype("<i2", copy=False).tobytes() + bytes_.numpy().tobytes()


def unpack(data: bytes, tokens: int, width: int) -> NDArray[np.float32]:
    """Unpack data of the right length to (tokens, width) values.

    Raises:
        NotFiniteError: a scale is not finite.
    """
    count = tokens * _blocks(width)
    scales = (np.frombuffer(data, "<u2", count=count).astype(np.uint32) << np.uint32(16)).view(np.float32)
    if not np.isfinite(scales).all():
        raise NotFiniteError("tensor received")
    stored = np.frombuffer(data, np.uint8, offset=2 * count).reshape(count, BLOCK // 2)
    whole = np.empty((count, BLOCK), np.float32)
    whole[:, 0::2] = stored & 15
    whole[:, 1::2] = stored >> 4
    whole -= _OFFSET
    rotated = torch.from_numpy(whole) @ _hadamard()  # sums of integers: exact
    rotated *= torch.from_numpy(scales / np.float32(_ROOT)).unsqueeze(1)
    values: NDArray[np.float32] = (
        rotated.reshape(tokens, _blocks(width) * BLOCK)[:, :width].contiguous().numpy()
    )
    return values


def _blocks(width: int) -> int:
    return -(-width // BLOCK)


@functools.cache
def _hadamard() -> torch.Tensor:
    """The symmetric (64, 64) matrix of +1 and -1 (Sylvester)."""
    matrix = torch.ones(1, 1)
    for _ in range(BLOCK.bit_length() - 1):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix
