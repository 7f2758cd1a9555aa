"""What shared brokers enforce, as arithmetic: the bytes of a connection in, the first breach out.

The numbers are those of the services' documentation (docs/broker-limits.md), written down apart from
`iotsplit.limits`, so that a mistake in one of the two shows.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from iotsplit.runtime.proxy import UP
from tests import mqtt_packets as mqtt
from tests.mqtt_packets import Raw, Stream

BURST_S = 1.0
"""A second's worth may come at once."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """What a service allows one client."""

    packet_bytes: int = 1 << 28
    publishes_per_s: float = 1e9
    bytes_per_s: float = 1e12
    window: int = 1 << 16
    window_bytes: int = 1 << 40
    slashes: int = 1 << 16
    topics_per_subscribe: int = 1 << 16
    subscriptions: int = 1 << 16
    requests_per_s: float = 1e9
    retained: bool = True


SERVICES = {
    "aws": Service(
        packet_bytes=131_072,
        publishes_per_s=100,
        bytes_per_s=524_288,
        window=100,
        slashes=7,
        topics_per_subscribe=8,
        subscriptions=50,
    ),
    "azure": Service(
        packet_bytes=65_536,
        publishes_per_s=1000,
        bytes_per_s=1_000_000,
        window=1000,
        window_bytes=65_536,
        slashes=14,
        topics_per_subscribe=10,
        subscriptions=50,
        requests_per_s=5,
    ),
    "emqx-serverless": Service(
        packet_bytes=1_048_576, publishes_per_s=10, window=32, slashes=9, subscriptions=10
    ),
    "small": Service(packet_bytes=65_536, window=10, slashes=8),
}


class Meter:
    """A leaky bucket: runs over when more comes than its rate for longer than a burst."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._level, self._at = 0.0, 0.0

    def runs_over(self, amount: float, now: float) -> bool:
        self._level = max(0.0, self._level - self._rate * (now - self._at)) + amount
        self._at = now
        return self._level > self._rate * BURST_S


@dataclass
class Quota:
    """One connection held against a service."""

    service: Service
    streams: dict[str, Stream] = field(default_factory=dict)
    in_flight: dict[int, int] = field(default_factory=dict)  # bytes by packet id
    filters: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._publishes = Meter(self.service.publishes_per_s)
        self._bytes = Meter(self.service.bytes_per_s)
        self._requests = Meter(self.service.requests_per_s)

    def breach(self, way: str, data: bytes, now: float) -> str:
        """What is not allowed about these bytes; nothing if all is."""
        for raw in self.streams.setdefault(way, Stream()).feed(data):
            if way != UP:
                if raw.kind == mqtt.PUBACK:
                    self.in_flight.pop(mqtt.read_packet_id(raw), None)
                continue
            found = self._breach(raw, now)
            if found:
                return found
        return ""

    def _breach(self, raw: Raw, now: float) -> str:
        match raw.kind:
            case mqtt.PUBLISH:
                return self._published(raw, now)
            case mqtt.SUBSCRIBE | mqtt.UNSUBSCRIBE:
                return self._requested(raw, now)
        return ""

    def _published(self, raw: Raw, now: float) -> str:
        packet, service = mqtt.read_publish(raw), self.service
        if packet.packet_id is not None:
            self.in_flight[packet.packet_id] = raw.size_bytes
        breaches = {
            "size": raw.size_bytes > service.packet_bytes,
            "QoS 2": packet.qos > 1,
            "retained": packet.retain and not service.retained,
            "slashes": packet.topic.count("/") > service.slashes,
            "publishes": self._publishes.runs_over(1, now),
            "bytes": self._bytes.runs_over(raw.size_bytes, now),
            "window": len(self.in_flight) > service.window,
            # One packet alone may always be under way.
            "bytes in flight": len(self.in_flight) > 1 and sum(self.in_flight.values()) > service.window_bytes,
        }
        return next((f"{name} of {packet.topic}" for name, is_so in breaches.items() if is_so), "")

    def _requested(self, raw: Raw, now: float) -> str:
        filters, service = mqtt.read_filters(raw), self.service
        names = {name for name, _ in filters}
        self.filters = self.filters | names if raw.kind == mqtt.SUBSCRIBE else self.filters - names
        breaches = {
            "topics of one request": len(filters) > service.topics_per_subscribe,
            "subscriptions": len(self.filters) > service.subscriptions,
            "QoS 2": any(qos > 1 for _, qos in filters),
            "slashes": any(name.count("/") > service.slashes for name in names),
            "requests": self._requests.runs_over(1, now),
        }
        return next((f"{name}, {len(filters)} filters" for name, is_so in breaches.items() if is_so), "")


class Enforcer:
    """Gives each connection of a proxy its quota, and remembers what broke it."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._lock = threading.Lock()
        self.breaches: list[str] = []
        self.seen_bytes = 0

    def watch(self) -> Callable[[str, bytes, float], bool]:
        """What a proxy asks about the bytes of a new connection: whether to go on."""
        quota = Quota(self._service)

        def goes_on(way: str, data: bytes, now: float) -> bool:
            with self._lock:
                self.seen_bytes += len(data)
                breach = quota.breach(way, data, now)
                if breach:
                    self.breaches.append(breach)
            return not breach

        return goes_on
