"""The buses that the contract is run against, behind one handle."""

import queue
from collections.abc import Callable
from typing import Protocol

from iotsplit.packet import Packet
from iotsplit.runtime.link import Link, LinkChange
from iotsplit.runtime.memory import MemoryBroker, MemoryLink
from iotsplit.runtime.mqtt import BrokerAddress, MqttLink
from iotsplit.runtime.proxy import TcpProxy

PATIENCE_S = 20.0


class Bus(Protocol):
    """A broker with a way to cut off its clients."""

    def link(self, name: str) -> Link: ...
    def pump(self) -> None: ...
    def lose(self, name: str) -> None: ...
    def restore(self, name: str) -> None: ...
    def close(self) -> None: ...


class MemoryBus:
    def __init__(self) -> None:
        self.broker = MemoryBroker()

    def link(self, name: str) -> Link:
        return MemoryLink(self.broker, name)

    def pump(self) -> None:
        self.broker.deliver_all()

    def lose(self, name: str) -> None:
        self.broker.lose(name)

    def restore(self, name: str) -> None:
        self.broker.restore(name)

    def close(self) -> None:
        pass


class MqttBus:
    """A real broker; each client goes through a proxy of its own."""

    def __init__(self, port: int, prefix: str) -> None:
        self._port = port
        self._prefix = prefix
        self._proxies: dict[str, TcpProxy] = {}

    def link(self, name: str) -> Link:
        proxy = self._proxies[name] = TcpProxy(self._port)
        address = BrokerAddress.parse(f"mqtt://127.0.0.1:{proxy.port}")
        return MqttLink(address, f"{self._prefix}-{name}", first_retry_s=0.01)

    def pump(self) -> None:
        pass

    def lose(self, name: str) -> None:
        self._proxies[name].cut()

    def restore(self, name: str) -> None:
        self._proxies[name].mend()

    def close(self) -> None:
        for proxy in self._proxies.values():
            proxy.close()


class Peer:
    """A client with an inbox.

    Args:
        bus: where it lives.
        name: client and probe topic.
        root: what all topics of the test begin with.
        will: its last will.
    """

    def __init__(self, bus: Bus, name: str, root: str, will: Packet | None = None) -> None:
        self._bus, self.name, self._root = bus, name, root
        self._probe = f"{root}probe/{name}"
        self._probes = 0
        self._events: queue.SimpleQueue[Packet | LinkChange] = queue.SimpleQueue()
        self._packets: list[Packet] = []
        self.link = bus.link(name)
        self.link.open(self._events.put, last_will=will)

    def subscribe(self, *filters: str) -> None:
        """Subscribe, and wait until the broker has done it."""
        self.link.subscribe(frozenset({self._root + each for each in filters} | {self._probe}))
        self.sync()

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        self.link.publish(Packet(topic=self._root + topic, payload=payload, qos=qos, retain=retain))

    def sync(self) -> None:
        """Wait until the broker has seen everything that this peer said; it must be subscribed."""
        self._probes += 1
        expected = str(self._probes).encode()
        self.link.publish(Packet(topic=self._probe, payload=expected))
        self._collect(lambda packet: packet.topic == self._probe and packet.payload == expected)

    def packets(self, count: int) -> list[Packet]:
        """What has arrived since last asked: at least `count`, without the root, and nothing under way."""
        while len(self._packets) < count:
            self._collect(lambda packet: packet.topic != self._probe)
        self.sync()
        packets, self._packets = self._packets, []
        return packets

    def change(self) -> LinkChange:
        """The next change of the link; packets before it are kept."""
        while True:
            event = self._next()
            if isinstance(event, LinkChange):
                return event
            self._keep(event)

    def _collect(self, last: Callable[[Packet], bool]) -> None:
        while True:
            event = self._next()
            assert isinstance(event, Packet), event
            self._keep(event)
            if last(event):
                return

    def _keep(self, packet: Packet) -> None:
        if packet.topic != self._probe:
            short = packet.topic.removeprefix(self._root)
            self._packets.append(
                Packet(topic=short, payload=packet.payload, qos=packet.qos, retain=packet.retain)
            )

    def _next(self) -> Packet | LinkChange:
        self._bus.pump()
        return self._events.get(timeout=PATIENCE_S)


class MakePeer(Protocol):
    """Makes a peer that is subscribed and closed at the end."""

    def __call__(self, name: str, *filters: str, will: bytes | None = None) -> Peer: ...
