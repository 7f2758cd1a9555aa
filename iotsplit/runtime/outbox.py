"""What was handed to a link and has not been acknowledged; pure, its owner does the locking."""

from collections import Counter

from iotsplit.packet import Packet


class Outbox:
    """Remembers packets until their acknowledgement, so that the next connection can send them again.

    While there is no connection it keeps QoS 1 packets: of retained ones the last on each topic, of the
    others the newest that fit. What it lets go is asked for again by whoever misses it.

    Args:
        limit_bytes: payload that may wait.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._unacknowledged: dict[int, Packet] = {}
        self._early: set[int] = set()
        self._waiting: dict[str | int, Packet] = {}
        self._count = 0
        self.size_bytes = 0
        self.dropped: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._unacknowledged) + len(self._waiting)

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
        self.size_bytes += len(packet.payload)

    def acknowledged(self, message_id: int) -> None:
        """The broker has the packet (QoS 1), or the network has (QoS 0)."""
        packet = self._unacknowledged.pop(message_id, None)
        if packet is None:
            self._early.add(message_id)
        else:
            self.size_bytes -= len(packet.payload)

    def connection_lost(self) -> None:
        """Move what was not acknowledged to what waits for the next connection, in order."""
        packets = [*self._unacknowledged.values(), *self._waiting.values()]
        self._unacknowledged.clear()
        self._early.clear()
        self._waiting.clear()
        self.size_bytes = 0
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
        self.size_bytes += len(packet.payload)
        while self.size_bytes > self._limit_bytes and (oldest := self._oldest_event()) is not None:
            self._forget(oldest)
            self.dropped[1] += 1

    def drain(self) -> list[Packet]:
        """Hand out what waits, in order; whoever asks sends it."""
        packets = list(self._waiting.values())
        self._waiting.clear()
        self.size_bytes -= sum(len(packet.payload) for packet in packets)
        return packets

    def _oldest_event(self) -> int | None:
        return next((key for key in self._waiting if isinstance(key, int) and key != self._count), None)

    def _forget(self, key: str | int) -> None:
        packet = self._waiting.pop(key, None)
        if packet is not None:
            self.size_bytes -= len(packet.payload)
