"""What a recorder keeps up with, and how exact a replay's times are: ``python benchmarks/tape.py``.

Starts a Mosquitto of its own on loopback. Prints MiB/s that were published, recorded and lost, and the error of
the times at which a subscriber heard a replay at 1x.
"""

import argparse
import contextlib
import json
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from iotsplit.packet import Packet
from iotsplit.runtime import clock
from iotsplit.runtime.address import BrokerAddress
from iotsplit.runtime.link import LinkChange
from iotsplit.runtime.mqtt import MqttLink
from iotsplit.tape import files
from iotsplit.tape.files import TapeWriter
from iotsplit.tape.format import Header, Record
from iotsplit_broker.process import Kind, start
from iotsplit_broker.settings import BrokerSettings

PAYLOAD_BYTES = 61_440
QUIET_S = 5.0


def connect(port: int, name: str, *filters: str) -> tuple[MqttLink, "queue.SimpleQueue[tuple[float, Packet]]"]:
    """A client, and what it hears with the times of its arrival."""
    heard: queue.SimpleQueue[tuple[float, Packet]] = queue.SimpleQueue()

    def deliver(event: Packet | LinkChange) -> None:
        if isinstance(event, Packet):
            heard.put((clock.now(), event))

    link = MqttLink(BrokerAddress.parse(f"mqtt://127.0.0.1:{port}"), name)
    link.open(deliver, last_will=None)
    link.subscribe(frozenset(filters))
    return link, heard


def wait(seconds: float) -> None:
    """Let others go on."""
    threading.Event().wait(seconds)


def recorder(port: int, tape: Path) -> "subprocess.Popen[bytes]":
    """A recorder in a process of its own."""
    words = ["record", f"--broker=mqtt://127.0.0.1:{port}", "--topic=#", "--json", str(tape)]
    return subprocess.Popen([sys.executable, "-m", "iotsplit", *words], stdout=subprocess.PIPE)


def rate(port: int, directory: Path, *, count: int, payload_bytes: int, records: bool) -> dict[str, float]:
    """Publish as fast as the broker takes it, with or without a recorder beside a plain subscriber."""
    link, _ = connect(port, "bench")
    tape = directory / f"{payload_bytes}-{records}.tape"
    process = recorder(port, tape) if records else None
    while records and not (tape.exists() and tape.stat().st_size > 200):  # it hears the first message
        link.publish(Packet(topic="warm", payload=b"x" * 1000))
        wait(0.2)
    body = bytes(range(256)) * (payload_bytes // 256)
    other, arrived = connect(port, "subscriber", "load/#", "ready")
    while arrived.empty():  # its subscription is there
        link.publish(Packet(topic="ready", payload=b""))
        wait(0.2)
    while not arrived.empty():
        arrived.get()
    began = clock.now()
    for number in range(count):
        link.publish(Packet(topic=f"load/{number % 16}", payload=body, qos=1))
    came, seconds = 0, 0.0
    with contextlib.suppress(queue.Empty):  # brokers drop what waits too long for a slow client
        while came < count:
            at, _ = arrived.get(timeout=QUIET_S)
            came, seconds = came + 1, at - began
    link.close()
    other.close()
    found = {"heard_mib_s": came * payload_bytes / seconds / 2**20, "heard_s": came / seconds, "heard": came}
    if process is not None:
        ended = end_of_growth(tape)  # it may lag behind the subscriber: the broker holds the rest for it
        process.terminate()
        found["lost_said"] = json.loads(process.communicate(timeout=60)[0])["lost"]
        kept = sum(each.topic.startswith("load/") for each in files.records(tape))
        found |= {
            "recorded": kept,
            "of": count,
            "recorded_mib_s": kept * payload_bytes / (ended - began) / 2**20,
        }
    return found


def end_of_growth(tape: Path) -> float:
    """When a file grew for the last time; it has been quiet for some seconds then."""
    size, at = -1, clock.now()
    while clock.now() < at + QUIET_S / 2:
        wait(0.1)
        if tape.stat().st_size != size:
            size, at = tape.stat().st_size, clock.now()
    return at


def timing(port: int, directory: Path) -> dict[str, float]:
    """Replay at 1x, and hear when it is said."""
    tape = directory / "times.tape"
    gaps_ms = [2, 5, 11, 20, 3, 50, 7, 1]
    at = 0
    with TapeWriter(tape, Header()) as writer:
        for number in range(400):
            at += gaps_ms[number % len(gaps_ms)] * 1_000_000
            writer.add(Record(at, at, "beat", number.to_bytes(2), 0))
    expected = [each.mono_ns / 1e9 for each in files.records(tape)]
    link, heard = connect(port, "ear", "beat")
    subprocess.run(
        [sys.executable, "-m", "iotsplit", "replay", str(tape), f"--broker=mqtt://127.0.0.1:{port}"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    times = [heard.get(timeout=10)[0] for _ in expected]
    link.close()
    # One offset for all: when the replay began is not known here.
    offset = statistics.median(a - b for a, b in zip(times, expected, strict=True))
    errors = sorted(abs(a - b - offset) * 1e3 for a, b in zip(times, expected, strict=True))
    return {
        "median_ms": statistics.median(errors),
        "p95_ms": errors[int(0.95 * len(errors))],
        "drift_ms": (times[-1] - times[0] - expected[-1] + expected[0]) * 1e3,
    }


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=400)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        broker = start(BrokerSettings(directory=directory / "broker"), Kind.MOSQUITTO)
        port = broker.settings.port
        try:
            for size in (PAYLOAD_BYTES, 1024):
                count = min(options.mib * 2**20 // size, 40_000)
                for records in (False, True):
                    found = rate(port, directory, count=count, payload_bytes=size, records=records)
                    print(size, "recorded" if records else "alone", {k: round(v, 1) for k, v in found.items()})
            print("replay at 1x", {k: round(v, 3) for k, v in timing(port, directory).items()})
        finally:
            broker.stop()


if __name__ == "__main__":
    main()
