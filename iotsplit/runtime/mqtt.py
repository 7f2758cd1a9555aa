"""A link over a real MQTT broker."""

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

__all__ = ["BrokerAddress", "MqttLink"]

WINDOW = 100
LIMIT_BYTES = 8 * 1024 * 1024
PATIENCE_S = 10.0
FLUSH_S = 10.0
FIRST_RETRY_S = 0.25
LAST_RETRY_S = 30.0

log = structlog.get_logger()


class MqttLink:
    """One client of an MQTT 3.1.1 broker that comes back by itself.

    While the broker is away, QoS 0 packets are dropped and QoS 1 packets wait within `limit_bytes`
    (see `Outbox`); `publish` does not block then, for nobody could say until when.

    Args:
        address: the broker's.
        client_id: unique at the broker: of two with the same id it throws out the earlier.
        window: QoS 1 packets under way before the first is acknowledged.
        limit_bytes: payload that may wait for acknowledgement before `publish` blocks.
        first_retry_s: wait before the first attempt to come back; doubles with each.
    """

    def __init__(
        self,
        address: BrokerAddress,
        client_id: str,
        *,
        window: int = WINDOW,
        limit_bytes: int = LIMIT_BYTES,
        first_retry_s: float = FIRST_RETRY_S,
    ) -> None:
        self._address = address
        self._client_id = client_id
        self._window = window
        self._first_retry_s = first_retry_s
        self._last_will: Packet | None = None
        self._deliver: Deliver = lambda _: None
        self._filters: frozenset[str] = frozenset()
        self._outbox = Outbox(limit_bytes)
        self._connection: Connection | None = None
        self._closing = threading.Event()
        self._keeper: threading.Thread | None = None
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
        self._keeper = threading.Thread(target=self._keep, args=(connection,), name="link", daemon=True)
        self._keeper.start()

    def subscribe(self, filters: frozenset[str]) -> None:
        """Make `filters` the subscriptions: subscribe what is new, unsubscribe the rest."""
        with self._handing_over:
            new, old = filters - self._filters, self._filters - filters
            self._filters = filters
            if self._connection is not None:
                self._connection.subscribe(sorted(new))
                self._connection.unsubscribe(sorted(old))

    def publish(self, packet: Packet) -> None:
        """Hand a packet to the bus.

        Blocks while too many bytes wait for acknowledgement, at most `PATIENCE_S`: the caller may be the
        one whose silence holds the others up, so after that the packet goes out all the same.
        """
        self._wait_for_room(len(packet.payload))
        with self._handing_over:
            connection = self._connection
            if connection is None:
                with self._changed:
                    self._outbox.keep(packet)
            else:
                self._send(connection, packet)

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
        keeper, self._keeper = self._keeper, None
        if keeper is not None and keeper is not threading.current_thread():
            keeper.join(FLUSH_S)

    def _connect(self) -> Connection:
        connection = Connection(
            self._address,
            self._client_id,
            window=self._window,
            last_will=self._last_will,
            events=Events(arrived=self._arrived, acknowledged=self._acknowledged),
        )
        connection.open()
        with self._handing_over:
            connection.subscribe(sorted(self._filters))
            with self._changed:
                waiting = self._outbox.drain()
            for packet in waiting:
                self._send(connection, packet)
            self._connection = connection
        return connection

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
            return gone or self._outbox.has_room(size_bytes)

        with self._changed:
            if not self._changed.wait_for(may_go_on, PATIENCE_S):
                log.warning("the broker acknowledges slowly", waiting_bytes=self._outbox.size_bytes)

    def _arrived(self, packet: Packet) -> None:
        try:
            self._deliver(packet)
        except Exception:
            # Whatever it is must not end paho's thread, which nobody would notice.
            log.exception("delivery failed", topic=packet.topic)

    def _acknowledged(self, message_id: int) -> None:
        with self._changed:
            self._outbox.acknowledged(message_id)
            self._changed.notify_all()

    def _keep(self, connection: Connection) -> None:
        """Thread: whenever the connection ends, make a new one."""
        attempt = 0
        while True:
            since = clock.now()
            connection.wait_until_ended()
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
