"""The link within a broker's limits: what waits comes in order and in time, across a lost connection too."""

import queue
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from iotsplit.limits import BrokerLimits
from iotsplit.packet import Packet
from iotsplit.runtime.address import BrokerAddress
from iotsplit.runtime.link import LinkChange
from iotsplit.runtime.mqtt import MqttLink
from iotsplit.runtime.proxy import DOWN, TcpProxy
from tests.broker.conftest import StartBroker
from tests.quotas import Enforcer, Service
from tests.waiting import comes_true

pytestmark = [pytest.mark.slow, pytest.mark.broker]

PATIENCE_S = 60.0
MESSAGES = 60
FAST = BrokerLimits(publishes_per_s=180, bytes_per_s=90_000, window=5, window_bytes=2000, requests_per_s=90)
SERVICE = Service(publishes_per_s=200, bytes_per_s=100_000, window=5, window_bytes=2000, requests_per_s=100)


class Bench:
    """A service with a link to it that keeps to its limits."""

    def __init__(self, port: int, limits: BrokerLimits, service: Service, name: str) -> None:
        self.enforcer = Enforcer(service)
        self.proxy = TcpProxy(port, self.enforcer.watch)
        self.inbox: queue.SimpleQueue[Packet | LinkChange] = queue.SimpleQueue()
        address = replace(BrokerAddress.parse(f"mqtt://127.0.0.1:{self.proxy.port}"), limits=limits)
        self.link = MqttLink(address, name, first_retry_s=0.01)
        self.link.open(self.inbox.put, last_will=None)

    def say(self, payload: bytes, *, topic: str = "in/a", qos: int = 1, retain: bool = False) -> None:
        self.link.publish(Packet(topic=topic, payload=payload, qos=qos, retain=retain))

    def hear(self, count: int) -> list[bytes]:
        """So many payloads, in the order in which they came."""
        found: list[bytes] = []
        while len(found) < count:
            event = self.inbox.get(timeout=PATIENCE_S)
            if isinstance(event, Packet):
                found.append(event.payload)
        return found

    def close(self) -> None:
        self.link.close()
        self.proxy.close()


Start = Callable[..., Bench]


@pytest.fixture
def start(start_mosquitto: StartBroker) -> Iterator[Start]:
    benches: list[Bench] = []
    port = start_mosquitto().settings.port

    def begin(limits: BrokerLimits = FAST, service: Service = SERVICE) -> Bench:
        benches.append(Bench(port, limits, service, f"paced-{len(benches)}"))
        return benches[-1]

    yield begin
    for bench in benches:
        bench.close()


def test_a_burst_goes_out_in_order_and_within_every_limit(start: Start) -> None:
    bench = start()
    bench.proxy.shape(delay_s=0.01, ways=[DOWN])
    bench.link.subscribe(frozenset({"in/#"}))
    said = [number.to_bytes(2, "big") * 200 for number in range(MESSAGES)]
    for payload in said:
        bench.say(payload)
    assert bench.hear(MESSAGES) == said
    assert bench.enforcer.breaches == []


def test_the_same_burst_without_limits_is_cut(start: Start) -> None:
    bench = start(limits=BrokerLimits())
    bench.proxy.shape(delay_s=0.01, ways=[DOWN])
    for number in range(MESSAGES):
        bench.say(bytes([number]) * 400)
    while not isinstance(bench.inbox.get(timeout=PATIENCE_S), LinkChange):
        pass
    assert bench.enforcer.breaches


def test_a_sign_of_life_overtakes_what_waits(start: Start) -> None:
    bench = start(limits=replace(FAST, publishes_per_s=20), service=Service())
    bench.link.subscribe(frozenset({"in/#"}))
    for number in range(10):
        bench.say(bytes([number]))
    bench.say(b"alive", topic="in/b", qos=0)
    assert bench.hear(11).index(b"alive") < 9


def test_what_waits_when_the_connection_breaks_comes_with_the_next(start: Start) -> None:
    bench = start()
    bench.link.subscribe(frozenset({"in/#"}))
    said = [bytes([number]) * 100 for number in range(MESSAGES)]
    for payload in said[:20]:
        bench.say(payload)
    bench.proxy.cut()
    for payload in said[20:]:
        bench.say(payload)
    bench.proxy.mend()
    heard: set[bytes] = set()
    while not set(said[20:]) <= heard:
        heard |= set(bench.hear(1))
    assert bench.enforcer.breaches == []


def test_filters_that_change_all_the_time_keep_to_requests_topics_and_subscriptions(start: Start) -> None:
    most = 6
    limits = BrokerLimits(topics_per_subscribe=3, subscriptions=most, requests_per_s=40)
    service = Service(topics_per_subscribe=3, subscriptions=most, requests_per_s=45)
    bench = start(limits=limits, service=service)
    for number in range(30):
        bench.link.subscribe(frozenset(f"in/{number + more}" for number in [number] for more in range(most)))
    bench.say(b"kept", topic="in/32", retain=True)
    assert bench.hear(1) == [b"kept"]
    bench.link.subscribe(frozenset(f"out/{number}" for number in range(most)))
    bench.say(b"kept too", topic="out/5", retain=True)
    assert bench.hear(1) == [b"kept too"]
    assert bench.enforcer.breaches == []


def test_closing_waits_for_what_waits(start: Start) -> None:
    bench, other = start(), start(limits=BrokerLimits(), service=Service())
    other.link.subscribe(frozenset({"in/#"}))
    other.say(b"subscribed")
    assert other.hear(1) == [b"subscribed"]
    said = [bytes([number]) for number in range(MESSAGES)]
    for payload in said:
        bench.say(payload)
    bench.link.close()
    assert other.hear(MESSAGES) == said


def test_a_broker_that_refuses_retained_messages_is_suspected(start: Start) -> None:
    with capture_logs() as told:
        bench = start(limits=BrokerLimits(), service=Service(retained=False))
        bench.say(b"here", topic="state/a", retain=True)
        assert comes_true(lambda: any("retained" in str(line.get("hint")) for line in told))
    assert bench.enforcer.breaches[:3] == ["retained of state/a"] * 3
