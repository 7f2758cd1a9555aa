"""Two bits a value: rotated blocks of 64 channels on the best grid of four for normal values.

A rotation makes the values of a block nearly normal (`iotsplit.tensors.rotated`), whatever they were. The grid
that loses the least of those has its values at 0.45 and 1.51 standard deviations (Max, 1960, IRE Transactions
on Information Theory 6, table I), here as 3 and 10 times a unit: it keeps 88 % of the square.

Layout of (tokens, width), little-endian; blocks = ceil(width / 64), the last one padded with zeros:

- tokens x blocks scales, a byte each (`iotsplit.tensors.logscales`), of a block's root mean square;
- 16 bytes of each block: channels 4i (lowest two bits) to 4i + 3, of which each has 2 where its rotated value
  is not negative, plus 1 where its magnitude is 10 units and not 3.

The unit is 0.151 times the scale. Beyond 6.5 units a magnitude is 10. A block is read as ``H q * unit / 8``,
where ``H q`` is a sum of small integers and so exact: everybody reads the same float32 values.
"""

import numpy as np
import torch

from iotsplit.tensors import logscales
from iotsplit.tensors.rotated import BLOCK, Values, columns, hadamard, rotate

LARGEST_ERROR = 1.2
"""Relative to the norm; that of normal values is 0.35.

Each value is read with its own sign, so that the square of the error is at most that of the block plus that of
64 of the smaller magnitudes.
"""

_SMALL, _LARGE, _BETWEEN = 3, 10, 6.5
_UNIT = np.float32(0.151)
_ROOT = np.float32(8.0)
_IN_BYTE = 4
_MAGNITUDES = np.array([-_SMALL, -_LARGE, _SMALL, _LARGE], np.float32)
_FOURS = _MAGNITUDES[np.arange(256)[:, None] >> (2 * np.arange(_IN_BYTE)) & 3]  # (256, 4), of each byte


def size_bytes(tokens: int, width: int) -> int:
    """Length of the data of (tokens, width)."""
    return tokens * -(-width // BLOCK) * (1 + BLOCK // _IN_BYTE)


def pack(values: torch.Tensor) -> bytes:
    """Pack contiguous float32 values of shape (tokens, width).

    Raises:
        NotFiniteError: a scale is not finite.
    """
    turned = rotate(columns(values.numpy(), np.zeros(0, np.int64)))  # (64, tokens x blocks)
    with np.errstate(over="ignore", invalid="ignore"):  # found in the scales
        squares = logscales.halved(np.square(turned)) / np.float32(BLOCK)
    names = logscales.nearest(np.sqrt(squares) / _ROOT)
    units = logscales.SCALES[names] * (_UNIT * _ROOT)
    is_large = np.abs(turned) >= units * np.float32(_BETWEEN)
    codes = (turned >= 0).view(np.uint8) << 1 | is_large.view(np.uint8)
    stored = codes[0::4] | codes[1::4] << 2 | codes[2::4] << 4 | codes[3::4] << 6
    return b"".join((names.tobytes(), stored.T.tobytes()))


def unpack(data: bytes, tokens: int, width: int) -> Values:
    """Unpack data of the right length to (tokens, width) values."""
    blocks = -(-width // BLOCK)
    names, stored = np.split(np.frombuffer(data, np.uint8), [tokens * blocks])
    numbers = _FOURS[stored].reshape(tokens * blocks, BLOCK)
    read = torch.from_numpy(numbers) @ hadamard()
    read *= torch.from_numpy(logscales.SCALES[names] * (_UNIT / _ROOT)).unsqueeze(1)
    values: Values = read.reshape(tokens, blocks * BLOCK)[:, :width].contiguous().numpy()
    return values
