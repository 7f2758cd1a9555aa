"""Reads MQTT 3.1.1 packets off a stream of bytes, whichever way it is cut (a second opinion beside paho's)."""

from collections.abc import Iterator
from dataclasses import dataclass

PUBLISH, PUBACK, SUBSCRIBE, UNSUBSCRIBE = 3, 4, 8, 10
MAX_LENGTH_BYTES = 4


class MalformedError(Exception):
    """What came is not MQTT."""


@dataclass(frozen=True, kw_only=True)
class Raw:
    """A control packet: its type, its flags, what stands after its length, and the bytes of all of it."""

    kind: int
    flags: int
    body: bytes
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Publish:
    topic: str
    qos: int
    retain: bool
    packet_id: int | None
    payload: bytes


class Stream:
    """One direction of a connection."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> Iterator[Raw]:
        """The packets that are whole now."""
        self._held += data
        while (found := _head(self._held)) is not None:
            length, begin = found
            if len(self._held) < begin + length:
                return
            first = self._held[0]
            body = self._held[begin : begin + length]
            self._held = self._held[begin + length :]
            yield Raw(kind=first >> 4, flags=first & 15, body=body, size_bytes=begin + length)


def read_publish(raw: Raw) -> Publish:
    topic, at = _text(raw.body, 0)
    qos = raw.flags >> 1 & 3
    packet_id = None
    if qos:
        packet_id, at = _number(raw.body, at), at + 2
    return Publish(topic=topic, qos=qos, retain=bool(raw.flags & 1), packet_id=packet_id, payload=raw.body[at:])


def read_filters(raw: Raw) -> list[tuple[str, int]]:
    """The filters of a SUBSCRIBE with their QoS; those of an UNSUBSCRIBE have 0."""
    found, at = [], 2
    while at < len(raw.body):
        topic, at = _text(raw.body, at)
        qos = 0
        if raw.kind == SUBSCRIBE:
            qos, at = raw.body[at : at + 1][0] if at < len(raw.body) else -1, at + 1
        if not 0 <= qos <= 2:
            raise MalformedError("a filter without its QoS")
        found.append((topic, qos))
    return found


def read_packet_id(raw: Raw) -> int:
    return _number(raw.body, 0)


def _head(held: bytes) -> tuple[int, int] | None:
    """The length of the first packet's rest, and where that begins; None while that is not there."""
    length = 0
    for place in range(MAX_LENGTH_BYTES):
        if len(held) < 2 + place:
            return None
        byte = held[1 + place]
        length |= (byte & 127) << 7 * place
        if byte < 128:
            return length, 2 + place
    raise MalformedError("a length of more than four bytes")


def _text(body: bytes, at: int) -> tuple[str, int]:
    end = at + 2 + _number(body, at)
    if end > len(body):
        raise MalformedError("a text that ends beyond its packet")
    return body[at + 2 : end].decode(), end


def _number(body: bytes, at: int) -> int:
    if len(body) < at + 2:
        raise MalformedError("a packet that ends too early")
    return int.from_bytes(body[at : at + 2], "big")
