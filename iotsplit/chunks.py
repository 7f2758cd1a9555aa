"""Frames as chunks: a body is compressed where that gains, cut, and put together again on the other side.

A chunk is a msgpack array (docs/PROTOCOL.md)::

    [protocol, device, tier, to_tier, epoch, step, micro_batch, checkpoint,
     number, total, size, crc32, packing, bytes]
"""

import zlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

import lz4.frame
import msgpack
import msgspec

from iotsplit import limits
from iotsplit.errors import ChunkMismatchError, MalformedMessageError, MessageTooLargeError

CHUNK_BYTES = limits.CHUNK_BYTES
HEADER_BYTES = 160  # room for the array around the bytes, ids at their longest
RAW, LZ4 = 0, 1
MAX_RATIO = 255  # LZ4 cannot do better: a byte of its format stands for at most so many
MAX_NAME = 64
PIECE_BYTES = 512  # what holding a piece costs beside its bytes

Body = bytes | memoryview


class Head(NamedTuple):
    """What every chunk of a frame says of it."""

    protocol: int
    device: str
    tier: str
    to_tier: str
    epoch: int
    step: int
    micro_batch: int
    checkpoint: int = 0


class Chunk(NamedTuple):
    """One chunk; `size` is that of the whole body before compression, `crc32` that of head and body."""

    head: Head
    number: int
    total: int
    size: int
    crc32: int
    packing: int
    data: memoryview


def checksum(head: Head, body: Body) -> int:
    """CRC-32 of head and body: a wrong bit in the head would make a frame of another step of it."""
    return zlib.crc32(body, zlib.crc32(msgpack.packb(head)))


def cut(body: bytes, head: Head, *, chunk_bytes: int = CHUNK_BYTES) -> list[bytes]:
    """Cut a body into payloads of at most `chunk_bytes`."""
    packed = lz4.frame.compress(body, store_size=False)
    packing, sent = (LZ4, packed) if len(packed) < len(body) * 0.97 else (RAW, body)
    room = chunk_bytes - HEADER_BYTES
    total = max(1, -(-len(sent) // room))
    view = memoryview(sent)
    common = (total, len(body), checksum(head, body), packing)
    return [
        msgpack.packb([*head, index, *common, view[index * room : (index + 1) * room]])
        for index in range(total)
    ]


FIELDS = (int, str, str, str, int, int, int, int, int, int, int, int, int, memoryview)
# Checked as they are read; the data stays where it is, a view of the payload.
_DECODER = msgspec.msgpack.Decoder(tuple[FIELDS])  # type: ignore[valid-type]


def read(payload: bytes) -> Chunk:
    """Read one chunk.

    Raises:
        MalformedMessageError: not a chunk.
    """
    try:
        fields = _DECODER.decode(payload)
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise MalformedMessageError(f"not a chunk: {error}") from None
    width = len(Head._fields)
    chunk = Chunk(Head(*fields[:width]), *fields[width:])
    head = chunk.head
    if min(head.epoch, head.step, head.micro_batch, head.checkpoint, chunk.number, chunk.size) < 0:
        raise MalformedMessageError("a number below zero")
    if max(len(chunk.head.device), len(chunk.head.tier), len(chunk.head.to_tier)) > MAX_NAME:
        raise MalformedMessageError("a name that is too long")  # it would be held uncounted
    if chunk.number >= chunk.total:
        raise ChunkMismatchError(f"index {chunk.number} of {chunk.total}")
    if chunk.packing not in (RAW, LZ4):
        raise MalformedMessageError(f"packing {chunk.packing} is unknown")
    return chunk


@dataclass(slots=True)
class _Open:
    pieces: dict[int, memoryview] = field(default_factory=dict)
    held_bytes: int = 0


class Assembler:
    """Puts chunks together, in any order, each as often as it comes.

    Chunks with another size or checksum are another message: garbage cannot spoil what it imitates.
    Memory is bounded: the message that has waited longest is forgotten first (it will be asked for again).

    Args:
        max_message_bytes: largest body.
        max_open_bytes: most bytes of unfinished messages.
    """

    def __init__(self, *, max_message_bytes: int, max_open_bytes: int) -> None:
        self._max_message_bytes = max_message_bytes
        self._max_open_bytes = max_open_bytes
        self._open: OrderedDict[tuple[object, ...], _Open] = OrderedDict()
        self.held_bytes = 0

    def add(self, origin: str, chunk: Chunk) -> Body | None:
        """Take a chunk of `origin`; return the body when it is complete.

        Raises:
            MessageTooLargeError: the body is announced larger than allowed.
            ChunkMismatchError: the pieces do not make up what was announced.
        """
        if max(chunk.size, chunk.total) > self._max_message_bytes:
            raise MessageTooLargeError(max(chunk.size, chunk.total), self._max_message_bytes)
        if chunk.total == 1:
            return self._finish(chunk, chunk.data)
        key = (origin, chunk.head, chunk.total, chunk.size, chunk.crc32, chunk.packing)
        entry = self._open.setdefault(key, _Open())
        self._open.move_to_end(key)
        if chunk.number not in entry.pieces:
            entry.pieces[chunk.number] = chunk.data
            entry.held_bytes += len(chunk.data) + PIECE_BYTES
            self.held_bytes += len(chunk.data) + PIECE_BYTES
        if len(entry.pieces) == chunk.total:
            self._forget(key)
            return self._finish(chunk, b"".join(entry.pieces[i] for i in range(chunk.total)))
        self._make_room()
        return None

    def _make_room(self) -> None:
        while self.held_bytes > self._max_open_bytes:
            self._forget(next(iter(self._open)))

    def _forget(self, key: tuple[object, ...]) -> None:
        self.held_bytes -= self._open.pop(key).held_bytes

    def _finish(self, chunk: Chunk, data: Body) -> Body:
        body = _decompress(data, chunk.size) if chunk.packing == LZ4 else data
        if len(body) != chunk.size or checksum(chunk.head, body) != chunk.crc32:
            raise ChunkMismatchError("size or checksum differ from what was announced")
        return body


def _decompress(data: Body, size: int) -> bytes:
    if size > MAX_RATIO * len(data):  # the decompressor makes room for `size` at once
        raise ChunkMismatchError(f"{len(data)} bytes cannot hold {size}")
    decompressor = lz4.frame.LZ4FrameDecompressor()
    try:
        body: bytes = decompressor.decompress(data, max_length=size + 1)
    except (RuntimeError, EOFError) as error:
        raise ChunkMismatchError(f"not lz4: {error}") from None
    return body
