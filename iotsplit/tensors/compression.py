"""Tensors as bytes for the bus, and back; both directions in one place, bit by bit the same everywhere.

=======  =====================================================================================
scheme   data, little-endian, row after row
=======  =====================================================================================
fp32     float32 values
bf16     upper halves of float32 values, rounded half to even: all high bytes, then all low bytes
int8     rotated blocks of 64 values in 8 bits, see `iotsplit.tensors.rotated`
int4     the same in 4 bits, and 8 channels of the tensor apart
int2     rotated blocks in 2 bits, see `iotsplit.tensors.normal`: enough for gradients
i32      token ids and labels
u8       masks, and ids or labels if all are within 0..255
=======  =====================================================================================
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from iotsplit.errors import NotFiniteError, TensorRefusedError
from iotsplit.messages import PackedTensor
from iotsplit.settings import Codec
from iotsplit.tensors import normal
from iotsplit.tensors.rotated import Rotated

Shape = tuple[int, ...]

NO_LABEL = -100
"""Stands for a place without loss."""

INT8 = Rotated(bits=8, apart=0)
INT4 = Rotated(bits=4, apart=8)

_LARGEST_U8 = 255
_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """How float32 values become bytes.

    Args:
        pack: from contiguous values of shape (tokens, width).
        unpack: from bytes of the right length, and (tokens, width), to that many values.
        size_bytes: of the data of (tokens, width).
        largest_error: bound of ‖decoded - x‖ / ‖x‖, for values that are not subnormal.
    """

    pack: Callable[[torch.Tensor], bytes]
    unpack: Callable[[bytes, int, int], NDArray[np.float32]]
    size_bytes: Callable[[int, int], int]
    largest_error: float


def pack(tensor: torch.Tensor, codec: Codec, *, largest_norm: float = math.inf) -> PackedTensor:
    """Pack activations or gradients.

    Args:
        tensor: (..., width) of floats.
        codec: what the fleet agreed on.
        largest_norm: Euclidean norm of all values that is not too large.

    Raises:
        NotFiniteError: a value is NaN or infinite, or becomes so.
        TensorRefusedError: the norm is too large.
    """
    values = tensor.detach().to(torch.float32)
    check_norm(values, largest_norm, "tensor to send")
    tokens, width = _rows(tuple(values.shape))
    data = SCHEMES[codec].pack(values.reshape(tokens, width).contiguous())
    return PackedTensor(scheme=codec.value, shape=tuple(tensor.shape), data=data)


def unpack(packed: PackedTensor, *, shape: Shape, codec: Codec, largest_norm: float = math.inf) -> torch.Tensor:
    """Unpack what a peer sent.

    Args:
        packed: from the bus, untrusted.
        shape: what it must have.
        codec: what it must be packed with.
        largest_norm: Euclidean norm of all values that is not too large.

    Returns:
        float32 values of `shape`.

    Raises:
        TensorRefusedError: another scheme, shape or length, found before anything is allocated; or the norm
            is too large.
        NotFiniteError: a value is NaN or infinite.
    """
    scheme = SCHEMES[codec]
    tokens, width = _rows(shape)
    _check(packed, (codec.value,), shape, scheme.size_bytes(tokens, width))
    # A copy of torch's own, aligned to 64 bytes: elsewhere matrix kernels may sum in another order.
    values = torch.from_numpy(scheme.unpack(packed.data, tokens, width)).reshape(shape).clone()
    check_norm(values, largest_norm, "tensor received")
    return values


def relative_error(packed: PackedTensor, tensor: torch.Tensor, codec: Codec) -> float:
    """What a codec has lost: ‖decoded - x‖ / ‖x‖, and 0 for a tensor of zeros that is read as zeros."""
    return lost(tensor, unpack(packed, shape=tuple(tensor.shape), codec=codec))


def lost(tensor: torch.Tensor, read: torch.Tensor) -> float:
    """What is lost of a tensor that is read as another: ‖read - x‖ / ‖x‖, and 0 for zeros read as zeros."""
    exact = tensor.detach().to(torch.float64)
    error, size = (float(torch.linalg.vector_norm(each)) for each in (read.to(torch.float64) - exact, exact))
    return min(error / size, 1e300) if size else float(error > 0)


def pack_integers(tensor: torch.Tensor) -> PackedTensor:
    """Pack token ids, labels or a mask: bytes if all values are within 0..255, else int32.

    Raises:
        TensorRefusedError: a value is not an int32.
    """
    values = tensor.detach().to(torch.int64).contiguous().numpy()
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if low < _INT32.min or high > _INT32.max:
        raise TensorRefusedError(f"integers from {low} to {high} are not int32")
    scheme = "u8" if low >= 0 and high <= _LARGEST_U8 else "i32"
    data = values.astype(_INTEGERS[scheme]).tobytes()
    return PackedTensor(scheme=scheme, shape=tuple(tensor.shape), data=data)


def unpack_integers(packed: PackedTensor, shape: Shape) -> torch.Tensor:
    """Unpack token ids, labels or a mask, as int64 of `shape`.

    Raises:
        TensorRefusedError: another scheme, shape or length; found before anything is allocated.
    """
    dtype = _INTEGERS.get(packed.scheme, np.dtype(np.uint8))
    _check(packed, tuple(_INTEGERS), shape, math.prod(shape) * dtype.itemsize)
    return torch.from_numpy(np.frombuffer(packed.data, dtype).astype(np.int64)).reshape(shape)


def unpack_any(packed: PackedTensor) -> NDArray[Any]:
    """Values of a tensor of whatever scheme, for people who look: nothing is agreed on, NaN is passed on.

    Raises:
        TensorRefusedError: the scheme is unknown, or the length is not that of the shape.
        NotFiniteError: it cannot be unpacked because its scales are not finite.
    """
    shape = tuple(packed.shape)
    if packed.scheme in _INTEGERS:
        return unpack_integers(packed, shape).numpy()
    if packed.scheme not in set(Codec):
        raise TensorRefusedError(f"scheme {packed.scheme!r} is unknown")
    scheme = SCHEMES[Codec(packed.scheme)]
    tokens, width = _rows(shape)
    _check(packed, (packed.scheme,), shape, scheme.size_bytes(tokens, width))
    return scheme.unpack(packed.data, tokens, width).reshape(shape)


def unpack_mask(packed: PackedTensor, shape: Shape) -> torch.Tensor:
    """Unpack a mask, as int64 of `shape`.

    Raises:
        TensorRefusedError: as for integers, or a value that is neither 0 nor 1.
    """
    mask = unpack_integers(packed, shape)
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise TensorRefusedError("a mask with values other than 0 and 1")
    return mask


def unpack_labels(packed: PackedTensor | None, shape: Shape, vocabulary: int, *, most: int) -> torch.Tensor:
    """Unpack labels, as int64 of `shape`.

    Args:
        packed: from the bus, untrusted.
        shape: what they must have.
        vocabulary: number of token ids.
        most: loss tokens that are announced; some of them may be in other micro-batches.

    Raises:
        TensorRefusedError: as for integers, none at all, an id that is none, or other counts.
    """
    if packed is None:
        raise TensorRefusedError("no labels, though this fleet computes its loss in the cloud")
    labels = unpack_integers(packed, shape)
    counted = labels != NO_LABEL
    inside = (labels >= 0) & (labels < vocabulary)
    if not bool((inside | ~counted).all()):
        raise TensorRefusedError("labels outside the vocabulary")
    if not 0 < int(counted.sum()) <= most:
        raise TensorRefusedError("more loss tokens than the step announces, or none")
    return labels


def _pack_fp32(values: torch.Tensor) -> bytes:
    return values.numpy().astype("<f4", copy=False).tobytes()


def _unpack_fp32(data: bytes, tokens: int, width: int) -> NDArray[np.float32]:  # noqa: ARG001 - one signature for all
    return np.frombuffer(data, "<f4").astype(np.float32)


def _pack_bf16(values: torch.Tensor) -> bytes:
    halves = values.to(torch.bfloat16)
    if halves.numel() and not all(map(math.isfinite, torch.aminmax(halves))):
        raise NotFiniteError("tensor to send, as bf16,")
    bits = halves.view(torch.int16).numpy().view(np.uint16)
    # High bytes (sign and exponent) resemble each other: together they compress.
    return b"".join(((bits >> np.uint16(8)).astype(np.uint8).data, bits.astype(np.uint8).data))


def _unpack_bf16(data: bytes, tokens: int, width: int) -> NDArray[np.float32]:  # noqa: ARG001 - one signature for all
    high, low = np.frombuffer(data, np.uint8).reshape(2, -1)
    wide = high.astype(np.uint32) << np.uint32(8)
    wide |= low
    wide <<= np.uint32(16)
    return wide.view(np.float32)


def _rows(shape: Shape) -> tuple[int, int]:
    """(tokens, width) of a shape (..., width); a scalar is one token of one value."""
    return (math.prod(shape[:-1]), shape[-1]) if shape else (1, 1)


def _check(packed: PackedTensor, schemes: tuple[str, ...], shape: Shape, size_bytes: int) -> None:
    if packed.scheme not in schemes:
        raise TensorRefusedError(f"scheme {packed.scheme!r} instead of {' or '.join(schemes)}")
    if tuple(packed.shape) != tuple(shape):
        raise TensorRefusedError(f"shape {packed.shape} instead of {shape}")
    if len(packed.data) != size_bytes:
        raise TensorRefusedError(f"{len(packed.data)} bytes instead of {size_bytes}")


def check_norm(values: torch.Tensor, largest: float, name: str) -> None:
    """Look whether values are finite, and their Euclidean norm is not too large.

    Raises:
        NotFiniteError: they are not finite.
        TensorRefusedError: the norm is too large.
    """
    # NaN and infinity pass through the sum of squares: one look at the values finds everything.
    norm = float(torch.linalg.vector_norm(values))
    if norm <= largest and norm < math.inf:
        return
    if not torch.isfinite(values).all():
        raise NotFiniteError(name)
    if norm > largest:  # else finite values, whose squares are not
        raise TensorRefusedError(f"{name} has a norm of {norm:.3g}, over {largest:.3g}")


def _rotated(scheme: Rotated) -> Scheme:
    return Scheme(
        pack=scheme.pack,
        unpack=scheme.unpack,
        size_bytes=scheme.size_bytes,
        largest_error=scheme.largest_error,
    )


SCHEMES: dict[Codec, Scheme] = {
    Codec.FP32: Scheme(
        pack=_pack_fp32,
        unpack=_unpack_fp32,
        size_bytes=lambda tokens, width: 4 * tokens * width,
        largest_error=0.0,
    ),
    Codec.BF16: Scheme(
        pack=_pack_bf16,
        unpack=_unpack_bf16,
        size_bytes=lambda tokens, width: 2 * tokens * width,
        largest_error=2.0**-8,
    ),
    Codec.INT8: _rotated(INT8),
    Codec.INT4: _rotated(INT4),
    Codec.INT2: Scheme(
        pack=normal.pack,
        unpack=normal.unpack,
        size_bytes=normal.size_bytes,
        largest_error=normal.LARGEST_ERROR,
    ),
}

_INTEGERS: dict[str, np.dtype[Any]] = {"i32": np.dtype("<i4"), "u8": np.dtype("u1")}
