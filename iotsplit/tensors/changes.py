"""What has changed of hidden states that the other side holds, in little more than a bit a value.

Layout of (tokens, width), little-endian; blocks = ceil(width / 64) for each token, the last one padded with
zeros; apart = 8, or the width if that is less. Channels apart are the strongest of what the other side holds,
as for `int4` (`iotsplit.tensors.rotated`); both sides find them, so they are not named.

- tokens scales, a byte each (`iotsplit.tensors.logscales`), of a token's largest change apart / 127;
- tokens x apart changes in these channels, two's complement, in ascending order of channels;
- tokens x blocks scales, a byte each, of the mean magnitude of a block's rotated changes;
- 8 bytes of each block: a bit for each rotated change, lowest first, set if it is not negative.

A block is rotated as in `iotsplit.tensors.rotated`, without the channels apart. It is read as
``H s * scale / 8`` with s of +1 and -1, and added to what is held; then the changes of the channels apart are.
``H s`` is a sum of small integers and so exact: everybody reads the same float32 values.

What is lost by rounding is part of the next change, because both sides go on from what was read. If normal
values change by a normal amount c each time, the error comes to 0.75 c.
"""

import numpy as np
import torch

from iotsplit.tensors import logscales, rotated
from iotsplit.tensors.rotated import BLOCK, hadamard

APART = 8
_LARGEST = 127
_ROOT = np.float32(8.0)


def size_bytes(tokens: int, width: int) -> int:
    """Length of the data of (tokens, width)."""
    return tokens * (1 + min(APART, width) + _blocks(width) * (1 + BLOCK // 8))


def pack(values: torch.Tensor, held: torch.Tensor) -> bytes:
    """Pack what has changed of contiguous float32 values (tokens, width) since those that are held.

    Raises:
        NotFiniteError: a change is not finite.
    """
    change = values.numpy() - held.numpy()
    apart = rotated.strongest(held.numpy(), APART)
    strong = change[:, apart]
    strong_names = logscales.nearest(np.abs(strong).max(axis=1, initial=0) / np.float32(_LARGEST))
    steps = logscales.SCALES[strong_names][:, None]
    whole = np.rint(strong / np.where(steps > 0, steps, np.float32(1))).clip(-_LARGEST, _LARGEST)
    turned = rotated.rotate(rotated.columns(change, apart))  # (64, tokens x blocks)
    names = logscales.nearest(logscales.halved(np.abs(turned)) / (BLOCK * _ROOT))
    signs = np.packbits(turned.T >= 0, axis=1, bitorder="little")
    return b"".join(each.tobytes() for each in (strong_names, whole.astype(np.int8), names, signs))


def unpack(data: bytes, held: torch.Tensor) -> torch.Tensor:
    """What is held, with its change.

    Args:
        data: of the right length.
        held: (tokens, width) float32 values.
    """
    tokens, width = held.shape
    apart, blocks = rotated.strongest(held.numpy(), APART), _blocks(width)
    sizes = np.cumsum([tokens, tokens * len(apart), tokens * blocks])
    strong_names, whole, names, signs = np.split(np.frombuffer(data, np.uint8), sizes)
    bits = np.unpackbits(signs.reshape(tokens * blocks, BLOCK // 8), axis=1, bitorder="little")
    turned = torch.from_numpy(bits.astype(np.float32) * 2 - 1) @ hadamard()
    turned *= torch.from_numpy(logscales.SCALES[names] / _ROOT).unsqueeze(1)
    after = held + turned.reshape(tokens, blocks * BLOCK)[:, :width]
    steps = whole.view(np.int8).reshape(tokens, len(apart)) * logscales.SCALES[strong_names][:, None]
    after[:, apart] += torch.from_numpy(steps)
    return after


def _blocks(width: int) -> int:
    return -(-width // BLOCK)
