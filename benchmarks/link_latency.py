"""Measure the link on our own broker: round trips of 1 KiB and throughput of 60 KiB packets, QoS 1.

Usage: python benchmarks/link_latency.py [mosquitto|embedded]
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from queue import Queue

from iotsplit.packet import Packet
from iotsplit.runtime.link import LinkChange
from iotsplit.runtime.mqtt import BrokerAddress, MqttLink
from iotsplit_broker.process import Kind, start
from iotsplit_broker.settings import BrokerSettings

ROUND_TRIPS = 1000
SMALL_BYTES = 1024
LARGE_BYTES = 60 * 1024
LARGE_PACKETS = 500
REPEATS = 5
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


def throughput_mib_s(link: MqttLink, inbox: Queue[Packet | LinkChange], *, qos: int) -> float:
    """MiB per second published and received at the same time."""
    packet = Packet(topic="bench/self", payload=bytes(LARGE_BYTES), qos=qos)
    since = time.perf_counter()
    for _ in range(LARGE_PACKETS):
        link.publish(packet)
    for _ in range(LARGE_PACKETS):
        inbox.get(timeout=PATIENCE_S)
    return LARGE_PACKETS * LARGE_BYTES / 2**20 / (time.perf_counter() - since)


def report(name: str, unit: str, values: list[float]) -> None:
    """One line: median and the extremes."""
    print(f"{name:<34} {statistics.median(values):8.2f} {unit}   ({min(values):.2f} to {max(values):.2f})")


def measure(kind: Kind, say: Callable[[str, str, list[float]], None] = report) -> None:
    """Start a broker, measure, stop it."""
    with tempfile.TemporaryDirectory() as directory:
        broker = start(BrokerSettings(directory=Path(directory)), kind)
        inbox: Queue[Packet | LinkChange] = Queue()
        link = MqttLink(BrokerAddress.parse(f"mqtt://127.0.0.1:{broker.settings.port}"), "bench")
        try:
            print(broker.name)
            link.open(inbox.put, last_will=None)
            link.subscribe(frozenset({"bench/self"}))
            say("round trip, 1 KiB", "ms   ", round_trips_ms(link, inbox))
            for qos in (1, 0):
                rates = [throughput_mib_s(link, inbox, qos=qos) for _ in range(REPEATS)]
                say(f"throughput, 60 KiB, QoS {qos}", "MiB/s", rates)
        finally:
            link.close()
            broker.stop()


if __name__ == "__main__":
    measure(Kind(sys.argv[1]) if len(sys.argv) > 1 else Kind.AUTO)
