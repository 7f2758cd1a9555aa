"""A tape as bytes: blocks of records with checksums, in the order in which they were written. Pure.

A tape can be read from its beginning through a pipe, while it is written, and after a power cut. Every block
begins with a mark and a checksum of its head, so that a reader finds the next one behind whatever is damaged
(docs/tape-format.md).
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import lz4.frame
import msgspec

from iotsplit.errors import MismatchError, UsageError
from iotsplit.packet import Packet
from iotsplit.tape.places import Index, Survey
from iotsplit.topics import Topics

FORMAT = 1
MAGIC = b"\x89iTape\r\n"
MARK = b"\xabTB\xba"
BLOCK_BYTES = 256 * 1024
"""Records are gathered up to so many bytes before they become a block."""
MAX_BLOCK_BYTES = 288 * 1024 * 1024
"""The largest message of MQTT (256 MiB) has a block to itself."""

HEADER, RECORDS, INDEX, END = b"H", b"R", b"I", b"E"
_HEAD = struct.Struct("<4scIII")  # mark, kind, size as stored, size when unpacked, CRC-32 of the stored bytes
_CHECK = struct.Struct("<I")  # CRC-32 of the head
_HEAD_BYTES = _HEAD.size + _CHECK.size
_OFFSET = struct.Struct("<Q")
END_BYTES = _HEAD_BYTES + _OFFSET.size


class Record(msgspec.Struct, frozen=True, array_like=True):
    """One message on the bus.

    Args:
        mono_ns: monotonic time of the observer, nanoseconds.
        wall_ns: nanoseconds since 1970.
        retain: it was retained on the broker before the observer subscribed.
        observer: client id of who saw it.
    """

    mono_ns: int
    wall_ns: int
    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    observer: str = ""

    @property
    def packet(self) -> Packet:
        """The same as a packet."""
        return Packet(topic=self.topic, payload=self.payload, qos=self.qos, retain=self.retain)


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What a tape says of itself.

    Args:
        made_by: program and version.
        created_ns: nanoseconds since 1970.
        filters: topic filters that were recorded.
        fleet: name of the fleet, empty if it is none of ours.
        prefix: of its topics.
        redacted: numbers of tensors were replaced by zeros.
    """

    format: int = FORMAT
    made_by: str = ""
    created_ns: int = 0
    filters: tuple[str, ...] = ()
    fleet: str = ""
    prefix: str = ""
    redacted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """Bytes that could not be read.

    Args:
        offset: in the file.
        size_bytes: until the next block that can be read, or the end.
        at_end: the tape ends with them: it is being written, or the power was cut.
    """

    offset: int
    size_bytes: int
    at_end: bool = False


Item = Header | Record | Index | Damage


class _Shape(msgspec.Struct):
    format: int


def _block(kind: bytes, stored: bytes, raw_bytes: int) -> bytes:
    head = _HEAD.pack(MARK, kind, len(stored), raw_bytes, zlib.crc32(stored))
    return head + _CHECK.pack(zlib.crc32(head)) + stored


class Encoder:
    """Makes the bytes of a tape; whoever calls writes them."""

    def __init__(self) -> None:
        self.survey = Survey()
        self._offset = 0
        self._encode = msgspec.msgpack.Encoder().encode
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0

    @property
    def offset(self) -> int:
        """Bytes made so far, without what is being gathered."""
        return self._offset

    @property
    def gathered_bytes(self) -> int:
        """Bytes of records that are not in a block yet."""
        return self._gathered_bytes

    def begin(self, header: Header) -> bytes:
        """The first bytes of a tape."""
        self.survey = survey_of(header)
        body = msgspec.msgpack.encode(header)
        return self._made(MAGIC + _block(HEADER, body, len(body)))

    def add(self, record: Record) -> bytes:
        """Take a record; gives a block when enough have been gathered, else nothing."""
        body = self._encode(record)
        self._gathered.append(body)
        self._gathered_bytes += len(body)
        self.survey.note(self._offset, record.mono_ns, record.topic, record.payload)
        return self.flush() if self._gathered_bytes >= BLOCK_BYTES else b""

    def flush(self) -> bytes:
        """A block of what has been gathered, or nothing."""
        if not self._gathered:
            return b""
        raw = b"\xdd" + len(self._gathered).to_bytes(4) + b"".join(self._gathered)  # msgpack's array 32
        self._gathered, self._gathered_bytes = [], 0
        return self._made(_block(RECORDS, lz4.frame.compress(raw, store_size=False), len(raw)))

    def end(self) -> bytes:
        """The last bytes: what has been gathered, the index, and where it lies."""
        return self.flush() + self._made(index_blocks(self.survey.index(), self._offset))

    def _made(self, made: bytes) -> bytes:
        self._offset += len(made)
        return made


def survey_of(header: Header) -> Survey:
    """Makes the index of a tape with that header."""
    try:
        return Survey(f"{Topics(header.fleet, header.prefix).root}round")
    except UsageError:
        return Survey()  # of no fleet, or of what is no name of one


def index_blocks(index: Index, offset: int) -> bytes:
    """The index, and behind it where it lies: at that offset."""
    body = msgspec.msgpack.encode(index)
    return _block(INDEX, body, len(body)) + _block(END, _OFFSET.pack(offset), _OFFSET.size)


def index_offset(end: bytes) -> int | None:
    """Where the index lies, from the last `END_BYTES` of a tape; None if it was not closed."""
    kind, body = _read_block(end, 0) if len(end) == END_BYTES else (b"", b"")
    return int(_OFFSET.unpack(body)[0]) if kind == END else None


def _read_head(data: bytes | bytearray, at: int) -> tuple[bytes, int, int, int] | None:
    """Kind, both sizes and checksum of a block that begins there; None if none does."""
    head = bytes(data[at : at + _HEAD_BYTES])
    if len(head) < _HEAD_BYTES or zlib.crc32(head[: _HEAD.size]) != _CHECK.unpack(head[_HEAD.size :])[0]:
        return None
    mark, kind, stored, raw, check = _HEAD.unpack(head[: _HEAD.size])
    return (kind, stored, raw, check) if mark == MARK and max(stored, raw) <= MAX_BLOCK_BYTES else None


def _read_block(data: bytes | bytearray, at: int) -> tuple[bytes, bytes]:
    """Kind and stored bytes of a whole block; the kind is empty if they are not what was written."""
    head = _read_head(data, at)
    if head is None:
        return b"", b""
    kind, size, _, check = head
    body = bytes(data[at + _HEAD_BYTES : at + _HEAD_BYTES + size])
    return (kind, body) if len(body) == size and zlib.crc32(body) == check else (b"", b"")


class Decoder:
    """Reads a tape that comes in pieces of any size.

    Args:
        name: of the tape, for errors.
        offset: where in the file the first piece lies; not 0 when it begins with a block of the index.
    """

    def __init__(self, name: str, *, offset: int = 0) -> None:
        self._name = name
        self._began = offset > 0
        self._offset = offset
        self._data = bytearray()
        self._damage = 0  # bytes before `_offset` that could not be read
        self._decode = msgspec.msgpack.Decoder(list[Record]).decode

    def feed(self, data: bytes) -> Iterator[tuple[int, Item]]:
        """Take bytes; gives what they complete, each with the offset of its block.

        Raises:
            UsageError: it is no tape.
            MismatchError: a tape of another version of the format.
        """
        self._data += data
        if not self._began:
            if len(self._data) < len(MAGIC):
                return
            if not self._data.startswith(MAGIC):
                raise self._no_tape()
            self._began = True
            self._drop(len(MAGIC))
        while True:
            head = _read_head(self._data, 0)
            if head is None:
                if not self._seek():
                    return
                continue
            if len(self._data) < _HEAD_BYTES + head[1]:
                return
            yield from self._block(head)

    def end(self) -> Iterator[tuple[int, Item]]:
        """There is no more; gives what is torn, and what can be read behind a torn block.

        Raises:
            UsageError: it is no tape.
        """
        if not self._began:
            raise self._no_tape()
        while self._data:
            # A head whose block is cut short: what lies behind it may be whole, if the file was added to.
            self._skip(1)
            yield from self.feed(b"")
            if len(self._data) < _HEAD_BYTES:
                self._skip(len(self._data))
        if self._damage:
            yield self._offset, Damage(offset=self._offset - self._damage, size_bytes=self._damage, at_end=True)

    def _no_tape(self) -> UsageError:
        if not self._data:
            return UsageError(f"{self._name} is empty", fix="nothing was recorded into it; record again")
        return UsageError(f"{self._name} is no tape", fix="name a file made by iotsplit record")

    def _block(self, head: tuple[bytes, int, int, int]) -> Iterator[tuple[int, Item]]:
        kind, size, raw_bytes, _ = head
        _, body = _read_block(self._data, 0)
        items = self._items(kind, body, raw_bytes)
        if items is None:
            self._skip(1)
            return
        at = self._offset
        if self._damage:
            yield at, Damage(offset=at - self._damage, size_bytes=self._damage)
            self._damage = 0
        self._drop(_HEAD_BYTES + size)
        for item in items:
            yield at, item

    def _items(self, kind: bytes, body: bytes, raw_bytes: int) -> list[Item] | None:
        """What a block holds; None if it is damaged."""
        if not body:
            return None
        try:
            match kind:
                case b"H":
                    return [self._header(body)]
                case b"R":
                    raw = lz4.frame.LZ4FrameDecompressor().decompress(body, max_length=raw_bytes + 1)
                    return list(self._decode(raw)) if len(raw) == raw_bytes else None
                case b"I":
                    return [msgspec.msgpack.decode(body, type=Index)]
        except (msgspec.DecodeError, RuntimeError, EOFError, MemoryError):
            return None
        return []  # the end, or a kind of block that a later version of iotsplit adds

    def _header(self, body: bytes) -> Header:
        found = msgspec.msgpack.decode(body, type=_Shape).format
        if found != FORMAT:
            raise MismatchError(
                f"{self._name} is a tape of format {found}, this iotsplit reads format {FORMAT}",
                fix="use the version of iotsplit that recorded it",
            )
        return msgspec.msgpack.decode(body, type=Header)

    def _seek(self) -> bool:
        """Pass over bytes until a block may begin; false when more are needed to know."""
        if len(self._data) < _HEAD_BYTES:
            return False
        found = self._data.find(MARK, 1)
        if found < 0:
            found = len(self._data) - len(MARK) + 1  # a mark may have begun
        self._skip(found)
        return True

    def _skip(self, count: int) -> None:
        self._damage += count
        self._drop(count)

    def _drop(self, count: int) -> None:
        del self._data[:count]
        self._offset += count
