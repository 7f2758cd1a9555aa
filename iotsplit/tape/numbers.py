"""What is in the tensors of a letter: shapes and codecs always, values where numpy and torch are installed."""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from iotsplit.errors import PeerError
from iotsplit.messages import Activation, Contents, PackedTensor, Update, decode_content
from iotsplit.tape.letters import FRAMES, Letter


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A tensor that was on the bus.

    Args:
        name: field of the content, or the parameter's name in an update.
        codec: scheme on the wire.
        dtype: of its values when unpacked.
        values: numpy array; None if the tensor cannot be unpacked here.
        problem: why it cannot.
    """

    name: str
    codec: str
    dtype: str
    shape: tuple[int, ...]
    values: Any = None
    problem: str = ""

    def statistics(self) -> dict[str, float | int]:
        """Least, most, mean, Euclidean norm of the finite values, and how many are not."""
        import numpy as np  # noqa: PLC0415 - not part of the base

        if self.values is None or not self.values.size:
            return {}
        values = self.values.astype(np.float64)
        finite = values[np.isfinite(values)]
        if not finite.size:
            return {"nan": int(values.size)}
        return {
            "min": float(finite.min()),
            "max": float(finite.max()),
            "mean": float(finite.mean()),
            "norm": float(np.linalg.norm(finite)),
            "nan": int(values.size - finite.size),
        }


def can_unpack() -> bool:
    """Whether what unpacks tensors is installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("numpy", "torch", "safetensors"))


def tensors_of(letter: Letter, *, values: bool) -> Iterator[Tensor]:
    """The tensors of a frame.

    Args:
        letter: what was said; other letters have none.
        values: whether to unpack them.
    """
    if letter.first not in FRAMES or letter.head is None:
        return
    try:
        content = decode_content(letter.body)
    except PeerError:
        return
    yield from tensors_in(content, values=values)


def tensors_in(content: Contents, *, values: bool) -> Iterator[Tensor]:
    """The tensors of a frame's content."""
    if isinstance(content, Update):
        if values:
            yield from tensors_in_file(content.tensors)
        return
    for name in content.__struct_fields__:
        packed = getattr(content, name)
        if isinstance(packed, PackedTensor):
            yield _unpacked(name, packed) if values else _described(name, packed)
    if isinstance(content, Activation) and content.cached is not None:
        problem = "what it is a change of is known only to its ends" if values else ""
        yield replace(_described("change", content.cached.change), problem=problem)


def tensors_in_file(body: bytes) -> Iterator[Tensor]:
    """The tensors in the bytes of a safetensors file; none if they are not one."""
    from iotsplit.tensors import updates  # noqa: PLC0415 - needs torch

    try:
        found = updates.arrays(body)
    except PeerError:
        return
    for name, (dtype, values) in sorted(found.items()):
        yield Tensor(name=name, codec="safetensors", dtype=dtype, shape=values.shape, values=values)


_DTYPES = {"i32": "int32", "u8": "uint8"}


def _described(name: str, packed: PackedTensor) -> Tensor:
    dtype = _DTYPES.get(packed.scheme, "float32")
    return Tensor(name=name, codec=packed.scheme, dtype=dtype, shape=tuple(packed.shape))


def _unpacked(name: str, packed: PackedTensor) -> Tensor:
    from iotsplit.tensors import compression  # noqa: PLC0415 - needs torch

    values, problem = None, ""
    try:
        values = compression.unpack_any(packed)
    except PeerError as error:
        problem = str(error)
    described = _described(name, packed)
    return Tensor(
        name=name,
        codec=packed.scheme,
        dtype=described.dtype,
        shape=described.shape,
        values=values,
        problem=problem,
    )
