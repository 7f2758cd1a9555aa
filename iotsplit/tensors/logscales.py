"""Scales of blocks as one byte each: four in every factor of two, from 2^-48 to 2^16, and 0.

Byte 0 stands for 0, and b for 2^(b // 4 - 48) times 2^(b % 4 / 4), which is rounded to float32.
"""

import numpy as np
from numpy.typing import NDArray

from iotsplit.errors import NotFiniteError

Values = NDArray[np.float32]

_IN_TWO = 4
_LEAST = -48
_MANTISSAS = np.array([2.0 ** (n / _IN_TWO) for n in range(_IN_TWO)], np.float32)
_BETWEEN = np.array([2.0 ** ((n + 0.5) / _IN_TWO) for n in range(_IN_TWO)], np.float32)
SCALES: Values = np.ldexp(_MANTISSAS[np.arange(256) % _IN_TWO], np.arange(256) // _IN_TWO + _LEAST)
SCALES[0] = 0
_TOO_LARGE = np.float32(2.0**16)


def nearest(scales: Values) -> NDArray[np.uint8]:
    """The bytes of the scales that are nearest, as factors; the first one is that of all that are too small.

    Raises:
        NotFiniteError: a scale is not finite, or too large.
    """
    if not (scales < _TOO_LARGE).all():  # so that NaN is refused too
        raise NotFiniteError("tensor to send, in so few bits,")
    # By comparisons, not by a logarithm: all machines write the same bytes.
    halves, exponents = np.frexp(scales)  # 0.5 <= half < 1
    steps = np.searchsorted(_BETWEEN, 2 * halves, side="right")
    numbers = (exponents - 1 - _LEAST) * _IN_TWO + steps
    named: NDArray[np.uint8] = np.where(scales > 0, numbers, 0).clip(0, 255).astype(np.uint8)
    return named


def halved(rows: Values) -> Values:
    """The sum of a power of two of rows, in the order of a tree: all machines find the same."""
    while len(rows) > 1:
        rows = rows[: len(rows) // 2] + rows[len(rows) // 2 :]
    total: Values = rows[0]
    return total
