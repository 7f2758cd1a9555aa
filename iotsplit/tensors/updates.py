"""LoRA updates as bytes: a tier's parameters at the end of a session, and back on the cloud's side.

=====  ==========================================================================================
codec  safetensors with, for each parameter
=====  ==========================================================================================
fp32   its values
bf16   its change since the adapter version, rounded half to even
int8   its change: int8 values, and ``<name>/scale`` with one float32 for each line of the longer
       side (of A a scale for each row, of B for each column); scale = (largest magnitude) / 127
=====  ==========================================================================================

A change is small beside the values, so that few bits say it. What rounding loses is at most 1/256 of a value's
change in bf16, and half a scale in int8; none of it is carried into the next round.
"""

from collections.abc import Mapping
from typing import Any

import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray

from iotsplit.errors import TensorRefusedError
from iotsplit.settings import UpdateCodec
from iotsplit.tensors import adapters

Tensors = Mapping[str, torch.Tensor]

LARGEST_GROWTH = {UpdateCodec.FP32: 0.0, UpdateCodec.BF16: 2.0**-8, UpdateCodec.INT8: 2.0**-20}
"""By how much a decoded change may be longer than the real one, relative to it."""

_LARGEST_INT8 = 127
_SCALE = "/scale"


def encode(tensors: Tensors, start: Tensors, codec: UpdateCodec) -> bytes:
    """Make an update of parameters.

    Args:
        tensors: float32 matrices by name.
        start: the adapter version that the session began with: these matrices, and maybe more.
        codec: the fleet's.
    """
    if codec is UpdateCodec.FP32:
        return adapters.to_bytes(tensors)
    changes = {name: tensors[name].detach() - start[name] for name in tensors}
    if codec is UpdateCodec.BF16:
        return adapters.to_bytes({name: change.to(torch.bfloat16) for name, change in changes.items()})
    stored: dict[str, torch.Tensor] = {}
    for name, change in changes.items():
        scale = change.abs().amax(dim=_long_side(change), keepdim=True) / _LARGEST_INT8
        whole = change / torch.where(scale > 0, scale, 1.0)
        stored[name] = whole.round().clamp(-_LARGEST_INT8, _LARGEST_INT8).to(torch.int8)
        stored[name + _SCALE] = scale
    return adapters.to_bytes(stored)


def decode(data: bytes, start: Tensors, codec: UpdateCodec) -> dict[str, torch.Tensor]:
    """Read an update from the bus, as float32 parameters.

    Args:
        data: what came.
        start: the adapter version that the session began with: its names and shapes must be there.
        codec: the fleet's.

    Raises:
        TensorRefusedError: another codec, or other names, shapes or types.
        NotFiniteError: a value is NaN or infinite.
    """
    shapes = {name: tuple(value.shape) for name, value in start.items()}
    if codec is UpdateCodec.FP32:
        return adapters.from_bytes(data, shapes)
    if codec is UpdateCodec.BF16:
        changes = adapters.from_bytes(data, shapes, dtypes=dict.fromkeys(shapes, torch.bfloat16))
        return {name: start[name] + change.to(torch.float32) for name, change in changes.items()}
    scales = {name + _SCALE: _scale_shape(value) for name, value in start.items()}
    found = adapters.from_bytes(data, shapes | scales, dtypes=dict.fromkeys(shapes, torch.int8))
    return {name: start[name] + found[name].to(torch.float32) * found[name + _SCALE] for name in sorted(shapes)}


def arrays(data: bytes) -> dict[str, tuple[str, NDArray[Any]]]:
    """What is stored in an update of any codec: types, and values as numpy has them (bf16 as float32).

    Raises:
        TensorRefusedError: it is not a safetensors file.
    """
    try:
        stored = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise TensorRefusedError(f"not safetensors: {error}") from None
    found = {}
    for name, tensor in stored.items():
        values = tensor.float() if tensor.dtype is torch.bfloat16 else tensor
        found[name] = (str(tensor.dtype).removeprefix("torch."), values.numpy())
    return found


def _long_side(matrix: torch.Tensor) -> int:
    return max(range(matrix.ndim), key=lambda side: matrix.shape[side])


def _scale_shape(matrix: torch.Tensor) -> tuple[int, ...]:
    long = _long_side(matrix)
    return tuple(1 if side == long else size for side, size in enumerate(matrix.shape))
