"""Measure the link on our own broker: round trips of 1 KiB, and streams of 60 KiB packets beside bare paho.

Usage: python benchmarks/link_latency.py [mosquitto|embedded]
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from iotsplit.packet import Packet
from iotsplit.runtime.link import LinkChange
from iotsplit.runtime.mqtt import BrokerAddress, MqttLink
from iotsplit_broker.process import Kind, start
from iotsplit_broker.settings import BrokerSettings

ROUND_TRIPS = 1000
SMALL_BYTES = 1024
LARGE_BYTES = 60 * 1024
LARGE_PACKETS = 500
REPEATS = 25
PATIENCE_S = 60.0


def round_trips_ms(link: MqttLink, inbox: Queue[Packet | LinkChange]) -> list[float]:
    """Milliseconds from publishing a packet until the publisher has it back."""
    packet = Packet(topic="bench/self", payload=bytes(SMALL_BYTES))
    found = []
    for _ in range(ROUND_TRIPS):
        since = time.perf_counter()
        link.publish(packet)
        inbox.get(timeout=PATIENCE_S)
        found.append((time.perf_counter() - since) * 1e3)
    return found


def stream_mib_s(publish: Callable[[bytes, int], object], inbox: "Queue[Any]", qos: int) -> float:
    """MiB per second published and received at the same time."""
    payload = bytes(LARGE_BYTES)
    since = time.perf_counter()
    for _ in range(LARGE_PACKETS):
        publish(payload, qos)
    for _ in range(LARGE_PACKETS):
        inbox.get(timeout=PATIENCE_S)
    return LARGE_PACKETS * LARGE_BYTES / 2**20 / (time.perf_counter() - since)


@contextmanager
def bare_paho(port: int, inbox: "Queue[Any]") -> Iterator[Client]:
    """A client of paho with its own thread and its defaults, which hears what it says."""
    client = Client(CallbackAPIVersion.VERSION2, "bare")
    subscribed: Queue[None] = Queue()
    client.on_subscribe = lambda *_: subscribed.put(None)
    client.on_message = lambda _client, _data, message: inbox.put(message)
    client.connect("127.0.0.1", port)
    client.loop_start()
    client.subscribe("bench/bare", qos=1)
    subscribed.get(timeout=PATIENCE_S)
    try:
        yield client
    finally:
        client.disconnect()
        client.loop_stop()


def report(name: str, unit: str, values: list[float]) -> None:
    """One line: median and the extremes."""
    print(f"{name:<34} {statistics.median(values):8.2f} {unit}   ({min(values):.2f} to {max(values):.2f})")


def measure(kind: Kind, say: Callable[[str, str, list[float]], None] = report) -> None:
    """Start a broker, measure, stop it."""
    with tempfile.TemporaryDirectory() as directory:
        broker = start(BrokerSettings(directory=Path(directory)), kind)
        port = broker.settings.port
        inbox: Queue[Packet | LinkChange] = Queue()
        link = MqttLink(BrokerAddress.parse(f"mqtt://127.0.0.1:{port}"), "bench")
        try:
            print(broker.name)
            link.open(inbox.put, last_will=None)
            link.subscribe(frozenset({"bench/self"}))
            say("round trip, 1 KiB", "ms   ", round_trips_ms(link, inbox))
            heard: Queue[Any] = Queue()
            with bare_paho(port, heard) as bare:
                for qos in (1, 0):
                    compare(link, inbox, bare, heard, qos=qos, say=say)
        finally:
            link.close()
            broker.stop()


def compare(
    link: MqttLink,
    inbox: "Queue[Packet | LinkChange]",
    bare: Client,
    heard: "Queue[Any]",
    *,
    qos: int,
    say: Callable[[str, str, list[float]], None],
) -> None:
    """The same stream over the link and over bare paho, in turns."""

    def over_link(payload: bytes, qos: int) -> None:
        link.publish(Packet(topic="bench/self", payload=payload, qos=qos))

    def over_paho(payload: bytes, qos: int) -> None:
        bare.publish("bench/bare", payload, qos=qos)

    ours, theirs = [], []
    for _ in range(REPEATS):
        ours.append(stream_mib_s(over_link, inbox, qos))
        theirs.append(stream_mib_s(over_paho, heard, qos))
    say(f"60 KiB, QoS {qos}, link", "MiB/s", ours)
    say(f"60 KiB, QoS {qos}, bare paho", "MiB/s", theirs)
    say(f"60 KiB, QoS {qos}, ratio", "     ", [a / b for a, b in zip(ours, theirs, strict=True)])


if __name__ == "__main__":
    measure(Kind(sys.argv[1]) if len(sys.argv) > 1 else Kind.AUTO)
