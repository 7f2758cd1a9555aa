"""What was handed to a link and has not been acknowledged; pure, its owner does the locking."""

from collections import Counter, deque

from iotsplit.packet import Packet
from iotsplit.runtime.pace import size_of

MAX_HASTY = 100


class Outbox:
    """Remembers packets until their acknowledgement, so that the next connection can send them again.

    While there is no connection it keeps QoS 1 packets: of retained ones the last on each topic, of the
    others the newest that fit. What it lets go is asked for again by whoever misses it.

    Where a broker allows only so much, packets also wait here for their turn. Then QoS 0 packets, which are
    signs of life, go before the others: MQTT promises no order between them.

    Args:
        limit_bytes: payload that may wait.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._unacknowledged: dict[int, Packet] = {}
        self._early: set[int] = set()
        self._waiting: dict[str | int, Packet] = {}
        self._hasty: deque[Packet] = deque()
        self._count = 0
        self.waiting_bytes = 0
        self._sent_bytes = 0
        self.in_flight = 0
        self.in_flight_bytes = 0
        self.dropped: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._unacknowledged) + len(self._waiting) + len(self._hasty)

    @property
    def size_bytes(self) -> int:
        """Payload that is held."""
        return self._sent_bytes + self.waiting_bytes

    @property
    def waiting(self) -> int:
        """Packets that no connection has taken."""
        return len(self._waiting) + len(self._hasty)

    def has_room(self, size_bytes: int) -> bool:
        """Whether so much more payload may be handed over now; an empty outbox takes any size."""
        return not self.size_bytes or self.size_bytes + size_bytes <= self._limit_bytes

    def sent(self, message_id: int, packet: Packet) -> None:
        """A connection has taken the packet."""
        # The acknowledgement comes on another thread, sometimes before we get here.
        if message_id in self._early:
            self._early.discard(message_id)
            return
        self._unacknowledged[message_id] = packet
        self._sent_bytes += len(packet.payload)
        if packet.qos:
            self.in_flight += 1
            self.in_flight_bytes += size_of(packet)

    def acknowledged(self, message_id: int) -> None:
        """The broker has the packet (QoS 1), or the network has (QoS 0)."""
        packet = self._unacknowledged.pop(message_id, None)
        if packet is None:
            self._early.add(message_id)
            return
        self._sent_bytes -= len(packet.payload)
        if packet.qos:
            self.in_flight -= 1
            self.in_flight_bytes -= size_of(packet)

    def connection_lost(self) -> None:
        """Move what was not acknowledged to what waits for the next connection, in order."""
        packets = [*self._hasty, *self._unacknowledged.values(), *self._waiting.values()]
        self._hasty.clear()
        self._unacknowledged.clear()
        self._early.clear()
        self._waiting.clear()
        self.waiting_bytes = self._sent_bytes = self.in_flight = self.in_flight_bytes = 0
        for packet in packets:
            self.keep(packet)

    def keep(self, packet: Packet) -> None:
        """Take a packet while there is no connection."""
        if packet.qos == 0:
            self.dropped[0] += 1
            return
        self._count += 1
        key = packet.topic if packet.retain else self._count
        # A later state replaces the earlier one: a day without a broker ends with one birth, not thousands.
        self._forget(key)
        self._waiting[key] = packet
        self.waiting_bytes += len(packet.payload)
        while self.size_bytes > self._limit_bytes and (oldest := self._oldest_event()) is not None:
            self._forget(oldest)
            self.dropped[1] += 1

    def queue(self, packet: Packet) -> None:
        """Take a packet that waits for its turn on the connection that there is."""
        if packet.qos:
            self.keep(packet)
            return
        self._hasty.append(packet)
        self.waiting_bytes += len(packet.payload)
        if len(self._hasty) > MAX_HASTY:
            self._take_hasty()
            self.dropped[0] += 1

    def first(self) -> Packet | None:
        """Whose turn is next."""
        return self._hasty[0] if self._hasty else next(iter(self._waiting.values()), None)

    def take_first(self) -> Packet:
        """Hand it out; whoever asks sends it."""
        if self._hasty:
            return self._take_hasty()
        packet = self._waiting.pop(next(iter(self._waiting)))
        self.waiting_bytes -= len(packet.payload)
        return packet

    def drain(self) -> list[Packet]:
        """Hand out what waits, in order; whoever asks sends it."""
        return [self.take_first() for _ in range(self.waiting)]

    def _take_hasty(self) -> Packet:
        packet = self._hasty.popleft()
        self.waiting_bytes -= len(packet.payload)
        return packet

    def _oldest_event(self) -> int | None:
        return next((key for key in self._waiting if isinstance(key, int) and key != self._count), None)

    def _forget(self, key: str | int) -> None:
        packet = self._waiting.pop(key, None)
        if packet is not None:
            self.waiting_bytes -= len(packet.payload)
