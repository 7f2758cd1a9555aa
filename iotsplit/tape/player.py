"""Says a tape again on a broker, with the pauses that it was said with."""

import re
import threading
from collections.abc import Callable, Iterable, Iterator

import msgspec

from iotsplit.errors import UsageError
from iotsplit.packet import Packet
from iotsplit.runtime import clock
from iotsplit.runtime.link import Link
from iotsplit.tape.format import Header, Record
from iotsplit.tape.letters import find_topics, is_retained
from iotsplit.tape.measures import Distribution

_SPEED = re.compile(r"(\d+(?:\.\d+)?)x?")
_PARTS = 4  # of s/a/b/
_MAX_TOPIC_BYTES = 65_535


class Played(msgspec.Struct, kw_only=True):
    """What was said.

    Args:
        lost: messages that have not left: of QoS 0 all for which there was no connection.
        error_ms: how much later than it should each message was handed over, in milliseconds.
    """

    records: int = 0
    payload_bytes: int = 0
    seconds: float = 0.0
    lost: int = 0
    error_ms: dict[str, float] = {}


def read_speed(text: str) -> float | None:
    """How many times as fast; None for as fast as the broker takes it.

    Raises:
        UsageError: it is no speed.
    """
    if text == "max":
        return None
    found = _SPEED.fullmatch(text)
    if found is None or not float(found[1]):
        raise UsageError(f"speed {text!r} is not one", fix="write 1x, 10x, 0.5x or max")
    return float(found[1])


def read_mapping(text: str) -> Callable[[str], str]:
    """What ``s/pattern/replacement/`` does to a topic; the first character after ``s`` divides its parts.

    Raises:
        UsageError: it cannot be read.
    """
    fix = "write s/old/new/, with a regular expression as old; any character may stand for /"
    divider = text[1:2]
    parts = text.split(divider) if divider else []
    if not text.startswith("s") or len(parts) != _PARTS or parts[3] not in ("", "g"):
        raise UsageError(f"topic mapping {text!r} is not one", fix=fix)
    try:
        pattern = re.compile(parts[1])
        pattern.sub(parts[2], "")
    except (re.error, IndexError) as error:
        raise UsageError(f"topic mapping {text!r}: {error}", fix=fix) from None
    return lambda topic: pattern.sub(parts[2], topic, count=0 if parts[3] else 1)


def packets(
    records: Iterable[Record], header: Header, mapping: Callable[[str], str]
) -> Iterator[tuple[int, Packet]]:
    """Monotonic time and packet of each record, as it was published.

    A broker passes on what is retained without saying so to those who have subscribed already; for topics of
    our own fleets it is known which are.

    Raises:
        UsageError: the mapping makes something that is no topic.
    """
    topics = None
    for record in records:
        topics = topics or find_topics(header, record.topic)
        ours = topics is not None and record.topic.startswith(topics.root)
        retain = record.retain or (
            ours and topics is not None and is_retained(record.topic[len(topics.root) :])
        )
        topic = mapping(record.topic)
        if not topic or "+" in topic or "#" in topic or len(topic.encode()) > _MAX_TOPIC_BYTES:
            raise UsageError(
                f"{record.topic} would become {topic!r}, which is no topic", fix="mend --map-topic"
            )
        yield record.mono_ns, Packet(topic=topic, payload=record.payload, qos=min(record.qos, 1), retain=retain)


def last_retained(source: Iterable[tuple[int, Packet]]) -> Iterator[tuple[int, Packet]]:
    """Of what is retained the last on each topic, in the order in which it was said."""
    held: dict[str, tuple[int, Packet]] = {}
    for at, packet in source:
        if packet.retain:
            held.pop(packet.topic, None)
            if packet.payload:
                held[packet.topic] = (at, packet)
    yield from held.values()


class Player:
    """Publishes packets at their times.

    Args:
        link: an open connection.
        speed: how many times as fast; None for as fast as the broker takes it.
        stop: ends it.
    """

    def __init__(self, link: Link, *, speed: float | None, stop: threading.Event) -> None:
        self._link, self._speed, self._stop = link, speed, stop
        self._late = Distribution()
        self._played = Played()

    def play(self, source: Iterable[tuple[int, Packet]]) -> Played:
        """Publish everything once, from now on."""
        began, origin = clock.now(), None
        for at, packet in source:
            origin = at if origin is None else origin
            due = began if self._speed is None else began + (at - origin) / 1e9 / self._speed
            if self._wait(due):
                break
            if self._speed is not None:
                self._late.add(max(0.0, clock.now() - due))
            self._link.publish(packet)
            self._played.records += 1
            self._played.payload_bytes += len(packet.payload)
        self._played.seconds += clock.now() - began
        if self._late.count:
            row = self._late.row()
            self._played.error_ms = {name: row[name] * 1e3 for name in ("p50", "p95", "max")}
        return self._played

    def _wait(self, due: float) -> bool:
        """Wait until it is time; whether to stop instead."""
        remaining = due - clock.now()
        return self._stop.wait(remaining) if remaining > 0 else self._stop.is_set()
