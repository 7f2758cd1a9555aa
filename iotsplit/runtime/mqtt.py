"""A link over a real MQTT broker."""

import math
import random
import threading

import structlog

from iotsplit.errors import UserError
from iotsplit.packet import Packet
from iotsplit.runtime import clock
from iotsplit.runtime.address import BrokerAddress
from iotsplit.runtime.connection import Connection, Events
from iotsplit.runtime.link import Deliver, LinkChange
from iotsplit.runtime.outbox import Outbox
from iotsplit.runtime.pace import Pace, size_of

__all__ = ["BrokerAddress", "MqttLink"]

LIMIT_BYTES = 8 * 1024 * 1024
PATIENCE_S = 10.0
FLUSH_S = 10.0
FIRST_RETRY_S = 0.25
LAST_RETRY_S = 30.0
SHORT_S = 5.0
TELLING = 3  # short connections in a row
HINT = (
    "it may refuse retained messages, which agents cannot do without, or the size or rate of what they send: "
    "see its log and docs/broker-limits.md, and give --profile or --max-rate"
)

log = structlog.get_logger()


class MqttLink:
    """One client of an MQTT 3.1.1 broker that comes back by itself.

    While the broker is away, QoS 0 packets are dropped and QoS 1 packets wait within `limit_bytes`
    (see `Outbox`); `publish` does not block then, for nobody could say until when.

    Where the broker's limits say how much may go in a second, a thread of its own sends: packets and changes
    of subscriptions wait for their turn, and what waits counts as not yet sent.

    Args:
        address: the broker's, with its limits.
        client_id: unique at the broker: of two with the same id it throws out the earlier.
        limit_bytes: payload that may wait for acknowledgement before `publish` blocks.
        first_retry_s: wait before the first attempt to come back; doubles with each.
    """

    def __init__(
        self,
        address: BrokerAddress,
        client_id: str,
        *,
        limit_bytes: int = LIMIT_BYTES,
        first_retry_s: float = FIRST_RETRY_S,
    ) -> None:
        self._address = address
        self._client_id = client_id
        self._first_retry_s = first_retry_s
        self._last_will: Packet | None = None
        self._deliver: Deliver = lambda _: None
        self._filters: frozenset[str] = frozenset()
        self._subscribed: frozenset[str] = frozenset()
        self._outbox = Outbox(limit_bytes)
        self._pace = Pace(address.limits) if address.limits.are_paced else None
        self._connection: Connection | None = None
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._jitter = random.Random()  # noqa: S311 - no secret
        # Held while something is handed to paho, so that order holds across threads. Never wait for room
        # with it, and never call paho with `_changed`: paho's thread takes its own locks before ours.
        self._handing_over = threading.RLock()
        self._changed = threading.Condition()

    def open(self, deliver: Deliver, *, last_will: Packet | None) -> None:
        """Connect once; return when the broker accepted.

        Raises:
            BrokerUnreachableError: nobody answers there.
            RefusedError: credentials, TLS or access rules.
            UsageError: the certificate authority's file cannot be used.
        """
        self._deliver = deliver
        self._last_will = last_will
        self._closing.clear()
        connection = self._connect()
        self._threads = [threading.Thread(target=self._keep, args=(connection,), name="link", daemon=True)]
        if self._pace is not None:
            pacing = threading.Thread(target=self._send_in_turn, args=(self._pace,), name="pace", daemon=True)
            self._threads.append(pacing)
        for thread in self._threads:
            thread.start()

    def subscribe(self, filters: frozenset[str]) -> None:
        """Make `filters` the subscriptions: unsubscribe what is there no more, subscribe what is new."""
        with self._handing_over:
            self._filters = filters
            if self._pace is None:
                while self._connection is not None and self._request(self._connection):
                    pass
                return
        with self._changed:
            self._changed.notify_all()

    def publish(self, packet: Packet) -> None:
        """Hand a packet to the bus.

        Blocks while too many bytes wait for acknowledgement or for their turn, at most `PATIENCE_S`: the caller
        may be the one whose silence holds the others up, so after that the packet goes out all the same.
        """
        if self._pace is None or packet.qos:
            self._wait_for_room(len(packet.payload))
        with self._handing_over:
            connection = self._connection
            if connection is not None and self._pace is None:
                self._send(connection, packet)
                return
            with self._changed:
                if connection is None:
                    self._outbox.keep(packet)
                else:
                    self._outbox.queue(packet)
                self._changed.notify_all()

    @property
    def unsent(self) -> int:
        """Packets that were handed over and given up, or have not left: all that is left once it is closed."""
        with self._changed:
            return sum(self._outbox.dropped.values()) + len(self._outbox)

    def close(self) -> None:
        """Wait until everything published has left (at most `FLUSH_S`), and say goodbye."""
        with self._changed:
            self._changed.wait_for(lambda: not self._outbox or self._connection is None, FLUSH_S)
            self._closing.set()
            self._changed.notify_all()
        with self._handing_over:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        threads, self._threads = self._threads, []
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(FLUSH_S)

    def _connect(self) -> Connection:
        connection = Connection(
            self._address,
            self._client_id,
            last_will=self._last_will,
            events=Events(arrived=self._arrived, acknowledged=self._acknowledged),
        )
        connection.open()
        with self._handing_over:
            self._subscribed = frozenset()
            if self._pace is None:
                self._send_all(connection)
            with self._changed:
                self._connection = connection
                self._changed.notify_all()
        return connection

    def _send_all(self, connection: Connection) -> None:
        """Send what has waited for a connection, subscriptions first."""
        while self._request(connection):
            pass
        with self._changed:
            waiting = self._outbox.drain()
        for packet in waiting:
            self._send(connection, packet)

    def _request(self, connection: Connection) -> bool:
        """Send one change of the subscriptions, if there is one to send."""
        most = self._address.limits.topics_per_subscribe
        # The old ones first: some brokers count.
        if old := sorted(self._subscribed - self._filters)[:most]:
            connection.unsubscribe(old)
            self._subscribed -= frozenset(old)
        elif new := sorted(self._filters - self._subscribed)[:most]:
            connection.subscribe(new)
            self._subscribed |= frozenset(new)
        return bool(old or new)

    def _send_in_turn(self, pace: Pace) -> None:
        """Thread: sends each packet and each change of subscriptions when it may go."""
        while not self._closing.is_set():
            with self._handing_over:
                sent = self._connection is not None and self._send_due(self._connection, pace)
            with self._changed:
                if not sent and (wait_s := self._next_turn(pace) - clock.now()) > 0:
                    self._changed.wait(None if wait_s == math.inf else wait_s)

    def _send_due(self, connection: Connection, pace: Pace) -> bool:
        """Send one thing that may go now, if there is one."""
        now = clock.now()
        if self._filters != self._subscribed and pace.request_due(now) <= now:
            pace.take_request(now)
            return self._request(connection)
        with self._changed:
            packet = self._outbox.first()
            if packet is None or not self._fits_window(packet) or pace.due(packet, now) > now:
                return False
            self._outbox.take_first()
        pace.take(packet, now)
        self._send(connection, packet)
        return True

    def _next_turn(self, pace: Pace) -> float:
        """When something may go; infinity if something else has to happen before. Holds `_changed`."""
        if self._connection is None or self._closing.is_set():
            return math.inf
        now, at = clock.now(), math.inf
        if self._filters != self._subscribed:
            at = pace.request_due(now)
        packet = self._outbox.first()
        if packet is not None and self._fits_window(packet):
            at = min(at, pace.due(packet, now))
        return at

    def _fits_window(self, packet: Packet) -> bool:
        """Whether the broker takes one more packet before it has acknowledged the others."""
        limits, in_flight = self._address.limits, self._outbox.in_flight
        if not packet.qos or not in_flight:
            return True
        size = self._outbox.in_flight_bytes + size_of(packet)
        return in_flight < limits.window and (limits.window_bytes is None or size <= limits.window_bytes)

    def _send(self, connection: Connection, packet: Packet) -> None:
        message_id = connection.publish(packet)
        with self._changed:
            self._outbox.sent(message_id, packet)
            self._changed.notify_all()

    def _wait_for_room(self, size_bytes: int) -> None:
        connection = self._connection
        if connection is None or connection.in_network_thread():
            return

        def may_go_on() -> bool:
            gone = self._closing.is_set() or self._connection is None
            return gone or (self._outbox.has_room(size_bytes) and self._may_wait())

        with self._changed:
            if not self._changed.wait_for(may_go_on, PATIENCE_S):
                log.warning("the broker acknowledges slowly", waiting_bytes=self._outbox.size_bytes)

    def _may_wait(self) -> bool:
        outbox = self._outbox
        return self._pace is None or self._pace.has_room(outbox.waiting, outbox.waiting_bytes)

    def _arrived(self, packet: Packet) -> None:
        try:
            self._deliver(packet)
        except Exception:
            # Whatever it is must not end paho's thread, which nobody would notice.
            log.exception("delivery failed", topic=packet.topic)

    def _acknowledged(self, message_id: int) -> None:
        with self._changed:
            self._outbox.acknowledged(message_id)
            # Whoever is woken for each single packet takes the interpreter's lock from those who send.
            if self._pace is not None or self._outbox.size_bytes <= LIMIT_BYTES // 2:
                self._changed.notify_all()

    def _keep(self, connection: Connection) -> None:
        """Thread: whenever the connection ends, make a new one."""
        attempt = short = 0
        while True:
            since = clock.now()
            connection.wait_until_ended()
            short = short + 1 if clock.now() - since < SHORT_S else 0
            if short == TELLING:
                log.warning("the broker ends each connection soon after accepting it", hint=HINT)
            self._fall()
            if self._closing.is_set():
                return
            self._deliver(LinkChange(up=False, reason=connection.end_reason or "the connection broke"))
            # Two clients of one id throw each other out: a connection that did not last counts as an attempt.
            attempt = 0 if clock.now() - since > LAST_RETRY_S else attempt
            while True:
                if self._closing.wait(self._pause_s(attempt)):
                    return
                attempt += 1
                try:
                    connection = self._connect()
                    break
                except UserError as error:
                    log.warning("still no broker", reason=error.message, attempt=attempt)
            if self._closing.is_set():
                connection.close()
                return
            self._deliver(LinkChange(up=True))

    def _fall(self) -> None:
        with self._handing_over, self._changed:
            self._connection = None
            self._outbox.connection_lost()
            self._changed.notify_all()

    def _pause_s(self, attempt: int) -> float:
        """Seconds before an attempt: random, so that a fleet does not come back in one instant."""
        longest = min(LAST_RETRY_S, self._first_retry_s * 2.0 ** min(attempt, 16))
        return longest * self._jitter.uniform(0.5, 1.0)
