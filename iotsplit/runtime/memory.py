"""A broker and links in memory: MQTT 3.1.1 semantics in one thread, driven step by step."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from iotsplit.packet import Packet
from iotsplit.runtime.link import Deliver, LinkChange
from iotsplit.runtime.outbox import Outbox

Tamper = Callable[[str, Packet], list[Packet]]
"""What really reaches a client instead of a packet: nothing, the same, several, or earlier ones held back."""

LIMIT_BYTES = 64 * 1024 * 1024


def matches(pattern: str, topic: str) -> bool:
    """Whether an MQTT topic filter matches a topic.

    Topics that begin with ``$`` are the broker's own and match no wildcard in front.
    """
    wanted, levels = pattern.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in {"+", "#"}:
        return False
    for place, level in enumerate(wanted):
        if level == "#":
            return True
        if place >= len(levels) or level not in {"+", levels[place]}:
            return False
    return len(wanted) == len(levels)


@dataclass(slots=True)
class _Client:
    deliver: Deliver
    last_will: Packet | None
    filters: frozenset[str] = frozenset()
    connected: bool = True


class MemoryBroker:
    """Holds retained packets, subscriptions and what is under way.

    Publishing only queues; `deliver_one` and `deliver_all` hand over, in the order of publishing. Overlapping
    subscriptions of a client deliver once.
    """

    def __init__(self) -> None:
        self.tamper: Tamper = lambda _, packet: [packet]
        self.retained: dict[str, Packet] = {}
        self._clients: dict[str, _Client] = {}
        self._links: dict[str, MemoryLink] = {}
        self._queue: deque[tuple[str, _Client, Packet]] = deque()

    def deliver_one(self) -> bool:
        """Hand over the oldest packet; whether there was one."""
        while self._queue:
            name, client, packet = self._queue.popleft()
            if client.connected:
                for each in self.tamper(name, packet):
                    client.deliver(each)
                return True
        return False

    def deliver_all(self) -> int:
        """Hand over until nothing is under way, with what receivers publish meanwhile; how many."""
        count = 0
        while self.deliver_one():
            count += 1
        return count

    def lose(self, client_id: str, reason: str = "the connection broke") -> None:
        """Cut a client's connection: its last will is published and what was under way to it is gone."""
        client = self._clients.pop(client_id)
        client.connected = False
        if client.last_will is not None:
            self.publish(client.last_will)
        client.deliver(LinkChange(up=False, reason=reason))

    def restore(self, client_id: str) -> None:
        """Let a lost client come back."""
        self._links[client_id].come_back()

    def connect(self, client_id: str, link: "MemoryLink", deliver: Deliver, last_will: Packet | None) -> None:
        """Accept a client; an older one of the same id loses its connection."""
        if client_id in self._clients:
            self.lose(client_id, "another client took over the id")
        self._links[client_id] = link
        self._clients[client_id] = _Client(deliver, last_will)

    def disconnect(self, client_id: str) -> None:
        """Forget a client that said goodbye: no last will."""
        client = self._clients.pop(client_id, None)
        if client is not None:
            client.connected = False

    def subscribe(self, client_id: str, filters: frozenset[str]) -> None:
        """Make `filters` a client's subscriptions; retained packets come for the new ones."""
        client = self._clients[client_id]
        new, client.filters = filters - client.filters, filters
        for topic, packet in self.retained.items():
            if any(matches(each, topic) for each in new):
                self._queue.append((client_id, client, packet))

    def publish(self, packet: Packet) -> None:
        """Queue a packet for every subscriber and keep it if it is to be retained."""
        if packet.retain:
            self.retained.pop(packet.topic, None)
            if packet.payload:
                self.retained[packet.topic] = packet
        live = replace(packet, retain=False)
        for client_id, client in self._clients.items():
            if any(matches(each, packet.topic) for each in client.filters):
                self._queue.append((client_id, client, live))


class MemoryLink:
    """One client of a `MemoryBroker`; comes back only when the broker restores it.

    Args:
        broker: shared by all links that should meet.
        client_id: unique at the broker.
    """

    def __init__(self, broker: MemoryBroker, client_id: str) -> None:
        self._broker = broker
        self._client_id = client_id
        self._filters: frozenset[str] = frozenset()
        self._outbox = Outbox(LIMIT_BYTES)
        self._connected = False
        self._deliver: Deliver = lambda _: None
        self._last_will: Packet | None = None

    def open(self, deliver: Deliver, *, last_will: Packet | None) -> None:
        """Connect."""
        self._deliver, self._last_will = deliver, last_will
        self._connect()

    def subscribe(self, filters: frozenset[str]) -> None:
        """Make `filters` the subscriptions of this client."""
        self._filters = filters
        if self._connected:
            self._broker.subscribe(self._client_id, filters)

    def publish(self, packet: Packet) -> None:
        """Hand a packet to the broker; while it is away QoS 1 packets wait and QoS 0 packets are dropped."""
        if self._connected:
            self._broker.publish(packet)
        else:
            self._outbox.keep(packet)

    def close(self) -> None:
        """Say goodbye; no last will is sent."""
        if self._connected:
            self._connected = False
            self._broker.disconnect(self._client_id)

    def come_back(self) -> None:
        """Connect again after a loss: subscriptions and waiting packets first, then the news."""
        if not self._connected:
            self._connect()
            self._deliver(LinkChange(up=True))

    def _connect(self) -> None:
        self._broker.connect(self._client_id, self, self._receive, self._last_will)
        self._connected = True
        self._broker.subscribe(self._client_id, self._filters)
        for packet in self._outbox.drain():
            self._broker.publish(packet)

    def _receive(self, event: Packet | LinkChange) -> None:
        if isinstance(event, LinkChange):
            self._connected = event.up
        self._deliver(event)
