"""Packets of the tests' fleet: made by path and payload, and read again."""

import json
from typing import Any

import lz4.frame

from iotsplit.chunks import LZ4, Head, read
from iotsplit.errors import PeerError
from iotsplit.mailbox import Mailbox
from iotsplit.messages import Contents, decode_content
from iotsplit.packet import Packet
from iotsplit.topics import Topics

TOPICS = Topics("test")


def packet_on(path: str, payload: bytes) -> Packet:
    """A packet of the fleet."""
    return Packet(topic=TOPICS.root + path, payload=payload)


def json_on(path: str, plain: dict[str, Any]) -> Packet:
    return packet_on(path, json.dumps(plain).encode())


def path_of(packet: Packet) -> str:
    return packet.topic.removeprefix(TOPICS.root)


def first_word(topic: str) -> str:
    return topic.removeprefix(TOPICS.root).partition("/")[0]


def is_raw(path: str) -> bool:
    """Whether any bytes are acceptable there, until they have to match a digest."""
    first, *words = path.split("/")
    chunk = {"adapter": 2, "checkpoint": 3}.get(first) == len(words)
    return chunk and words[-1].isdecimal() and (first == "checkpoint" or words[0].isdecimal())


def is_refused(name: str, packet: Packet) -> bool:
    try:
        Mailbox(TOPICS, name).incoming(packet)
    except PeerError:
        return True
    return False


def head() -> Head:
    """Of a frame from device a to its edge."""
    return Head(1, "a", "device", "edge", 1, 0, 0)


def content_of(packet: Packet) -> tuple[Head, Contents] | None:
    """Head and content of a frame; all frames of a tiny model are one chunk."""
    if first_word(packet.topic) not in ("lan", "wan", "update"):
        return None
    chunk = read(packet.payload)
    body = lz4.frame.decompress(chunk.data) if chunk.packing == LZ4 else chunk.data
    return chunk.head, decode_content(body)
