"""What ``iotsplit broker check`` measures: queues, round trips and speed."""

import contextlib
import queue
import socket
import statistics
from collections.abc import Callable
from types import TracebackType
from typing import Self

from iotsplit.errors import RunFailedError
from iotsplit.limits import PACKET_BYTES
from iotsplit.packet import Packet
from iotsplit.runtime import clock
from iotsplit.runtime.link import LinkChange
from iotsplit_broker.checking.bench import Bench
from iotsplit_broker.checking.client import QUIET_S, WAIT_S, BareClient, Manners
from iotsplit_broker.checking.points import Queue, Speed, Trip

MESSAGE = bytes(1024)
LARGEST_PACKET = len(MESSAGE) + PACKET_BYTES
PATIENCE_S = 15.0
AGENT_TRIPS = 30
PAIRS = 12
CONNECTIONS = 3
SPEED_S = 3.0


def queue_depth(bench: Bench, count: int) -> Queue:
    """Send messages of 1 KiB to a subscriber that takes none until all are sent.

    Args:
        bench: the broker.
        count: of messages; fewer where its rates let less through in the time.
    """
    topic = bench.topic("queue")
    limits = bench.address.limits
    count = min(
        count,
        int(PATIENCE_S * (limits.publishes_per_s or count)),
        int(PATIENCE_S * (limits.bytes_per_s or count * LARGEST_PACKET) / LARGEST_PACKET),
    )
    with bench.client() as reader, bench.client() as writer:
        reader.subscribe([topic])
        reader.hold()
        ids = [writer.send(Packet(topic=topic, payload=b"%06d" % n + MESSAGE)) for n in range(count)]
        acknowledged = writer.acknowledged(ids, PATIENCE_S)
        reader.release()
        packets = reader.hear(len(acknowledged), on=topic, timeout_s=PATIENCE_S, quiet_s=2 * QUIET_S)
    delivered = {packet.payload[:6] for packet in packets}
    return Queue(sent=count, acknowledged=len(acknowledged), delivered=len(delivered))


def round_trips(bench: Bench) -> Trip:
    """Send small messages to ourselves one by one as agents do, and in pairs to a client that knows no better.

    Raises:
        RunFailedError: they do not come back.
    """
    topic = bench.topic("trip")
    with _Agent(bench, topic) as agent:
        agent_ms = _median_ms(lambda: agent.round_trip(MESSAGE), AGENT_TRIPS)
    with bench.client(Manners(delays=True)) as reader, bench.beside(reader) as writer:
        reader.subscribe([topic], qos=0)
        pair_ms = _median_ms(lambda: _pair(writer, reader, topic), PAIRS)
    return Trip(agent_ms=agent_ms, pair_ms=pair_ms, network_ms=_median_ms(lambda: _connect(bench), CONNECTIONS))


def _pair(writer: BareClient, reader: BareClient, topic: str) -> None:
    """Two at once, to a reader that says nothing: Nagle's algorithm holds the second until a timer rings."""
    for _ in range(2):
        writer.send(Packet(topic=topic, payload=MESSAGE, qos=0))
    if len(reader.hear(2, on=topic)) < 2:  # noqa: PLR2004 - a pair
        raise _silence(topic)


def _connect(bench: Bench) -> None:
    # Reached before: what fails now is the network's, and said by whoever connects next.
    with contextlib.suppress(OSError):
        socket.create_connection((bench.address.host, bench.address.port), timeout=WAIT_S).close()


def _median_ms(once: Callable[[], None], times: int) -> float:
    took = []
    for _ in range(times):
        began = clock.now()
        once()
        took.append(clock.now() - began)
    return round(1000 * statistics.median(took), 2)


def speed(bench: Bench, message_bytes: int, *, limit_bytes: int) -> Speed:
    """Send large messages to ourselves as fast as a link takes them, for at most some seconds and bytes."""
    topic = bench.topic("speed")
    sent = arrived = 0
    with _Agent(bench, topic) as agent:
        began = last = clock.now()
        while sent * message_bytes < limit_bytes and clock.now() - began < SPEED_S:
            agent.publish(bytes(message_bytes))
            sent += 1
        while arrived < sent and agent.hears(2 * QUIET_S):
            arrived += 1
            last = clock.now()
    return Speed(message_bytes=message_bytes, sent=sent, arrived=arrived, seconds=last - began)


class _Agent:
    """A link as agents have it, that hears what it says; a context manager."""

    def __init__(self, bench: Bench, topic: str) -> None:
        self._link = bench.link()
        self._topic = topic
        self._inbox: queue.SimpleQueue[Packet] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        self._link.open(self._deliver, last_will=None)
        self._link.subscribe(frozenset({self._topic}))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._link.close()

    def publish(self, payload: bytes) -> None:
        self._link.publish(Packet(topic=self._topic, payload=payload))

    def hears(self, timeout_s: float = WAIT_S) -> bool:
        try:
            self._inbox.get(timeout=timeout_s)
        except queue.Empty:
            return False
        return True

    def round_trip(self, payload: bytes) -> None:
        self.publish(payload)
        if not self.hears():
            raise _silence(self._topic)

    def _deliver(self, arrived: Packet | LinkChange) -> None:
        if isinstance(arrived, Packet):
            self._inbox.put(arrived)


def _silence(topic: str) -> RunFailedError:
    return RunFailedError(
        f"a message on {topic} does not come back within {WAIT_S:.0f} s", fix="see the other points"
    )
