"""Rounds without end and a fault a minute: nothing may grow but what a run keeps of its rounds on the disk.

    scripts/soak --minutes 30

A tiny model, so that rounds take seconds: broker, cloud, two edges and three devices as processes of their own,
killed, frozen and cut off as by scripts/chaos. Every ten seconds memory, file descriptors and threads of each
process are noted, retained topics on the broker, and sizes on the disk. Whoever starts again starts small, so
the third quarter of the run is compared with the last, by the median of all processes of a tier.
Exits with 1 if something has grown.
"""

import argparse
import collections
import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import paho.mqtt.client as mqtt
import psutil
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.chaos import Chaos
from benchmarks.fleet import PAUSE, POLL_S, Fleet, rows
from iotsplit.datasets.records import Text, write_jsonl
from iotsplit.runtime import clock
from iotsplit_cloud.versions import KEPT_VERSIONS
from tests.support import letters_model

SAMPLE_S = 10.0
UNDER_WAY = 12
"""Retained topics that come and go: a third checkpoint of each session, before the first is cleared."""
ALLOWED = {"rss MiB": 1.05, "fds": 1.1, "threads": 1.1, "state.db KiB": 1.1}
"""How many times the median of the third quarter that of the last may be."""
MIB = 1 << 20
DEVICES = ("press", "pump", "robot")
EDGES = ("edge-1", "edge-2")
WORDS = (
    "--rounds=1000000",
    "--local-steps=6",
    "--checkpoint-every=2",
    "--cut=1,3",
    "--batch-size=2",
    "--sequence-length=16",
    "--devices=3",
    "--edges=2",
    "--stragglers=wait",
)


@dataclass(kw_only=True)
class Samples:
    """What was measured, by name; times in seconds since the start."""

    series: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: collections.defaultdict(list))

    def add(self, name: str, at: float, value: float) -> None:
        self.series[name].append((at, value))

    def quarter(self, name: str, number: int, length_s: float) -> float:
        """Median of a quarter of the run, the first is 0."""
        first, last = number * length_s / 4, (number + 1) * length_s / 4
        return statistics.median([value for at, value in self.series[name] if first <= at < last] or [0.0])


def sample(fleet: Fleet, samples: Samples, at: float) -> None:
    """Note how large everything is."""
    for name in fleet.running:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(fleet.pid(name))
            tier = "broker" if name == "broker" else name if name == "cloud" else name.partition("-")[0]
            tier = "device" if name in DEVICES else tier
            samples.add(f"{tier} rss MiB", at, process.memory_info().rss / MIB)
            samples.add(f"{tier} fds", at, process.num_fds())
            samples.add(f"{tier} threads", at, process.num_threads())
    with contextlib.suppress(OSError):
        samples.add("retained topics", at, retained(fleet.port))
    state = fleet.output / "state" / "cloud"
    with contextlib.suppress(OSError):
        samples.add("versions kept", at, len(list((state / "versions").iterdir())))
        samples.add("state.db KiB", at, (state / "state.db").stat().st_size / 1024)
        samples.add("write-ahead log KiB", at, (state / "state.db-wal").stat().st_size / 1024)
        samples.add("report.json KiB", at, (fleet.output / "report.json").stat().st_size / 1024)
        lines = [fleet.output / f"{name}.jsonl" for name in ("metrics", "events", "rounds")]
        samples.add("lines KiB", at, sum(file.stat().st_size for file in lines) / 1024)


def retained(port: int) -> int:
    """Retained topics below the fleet's root."""
    topics: set[str] = set()
    quiet = clock.now() + 1.0

    def heard(client: mqtt.Client, userdata: object, message: mqtt.MQTTMessage) -> None:
        del client, userdata
        if message.retain:
            topics.add(message.topic)

    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.on_message = heard
    client.connect("127.0.0.1", port)
    client.subscribe("iotsplit/chaos/#")
    while clock.now() < quiet:
        client.loop(timeout=0.1)
    client.disconnect()
    return len(topics)


def start(root: Path, seed: int, pause_s: float) -> tuple[Fleet, Chaos]:
    """A fleet of a tiny model, and what befalls it."""
    (root / "data").mkdir(parents=True)
    for device in DEVICES:
        records = [Text(f"the {device} says {number} and is warm today") for number in range(40)]
        write_jsonl(root / "data" / f"{device}.jsonl", records)
    model = letters_model(root / "tiny")
    fleet = Fleet(output=root, model=model, devices=DEVICES, edges=EDGES, words=WORDS, proxied=True)
    return fleet, Chaos(fleet, seed, (0.8 * pause_s, 1.2 * pause_s))


def soak(fleet: Fleet, chaos: Chaos, length_s: float) -> Samples:
    """Run for so long."""
    samples, started = Samples(), clock.now()
    due = 0.0
    while (at := clock.now() - started) < length_s:
        if fleet.keep_running():
            raise SystemExit(f"the cloud has ended; see {fleet.output / 'logs'}")
        chaos.poll()
        if at >= due:
            sample(fleet, samples, at)
            due = at + SAMPLE_S
        PAUSE.wait(POLL_S)
    return samples


def judge(samples: Samples, length_s: float, rounds: int) -> list[str]:
    """Print a table, and give what has grown."""
    grown: list[str] = []
    print(f"{'':24}{'2nd quarter':>12}{'3rd':>10}{'last':>10}")
    for name in sorted(samples.series):
        second, third, last = (samples.quarter(name, number, length_s) for number in (1, 2, 3))
        print(f"{name:24}{second:12.1f}{third:10.1f}{last:10.1f}")
        allowed = next((times for end, times in ALLOWED.items() if name.endswith(end)), None)
        if allowed is not None and last > third * allowed + 1:
            grown.append(name)
    before, after = (samples.quarter("retained topics", number, length_s) for number in (2, 3))
    if after > before + UNDER_WAY:
        grown.append("retained topics")
    if max(value for _, value in samples.series["versions kept"]) > KEPT_VERSIONS + 1:
        grown.append("versions kept")
    for name in ("state.db KiB", "report.json KiB", "lines KiB"):
        values = samples.series[name]
        print(f"{name} per round: {(values[-1][1] - values[0][1]) / max(1, rounds):.2f}")
    return grown


def wait_for(fleet: Fleet, condition: Callable[[], bool]) -> None:
    """Keep the fleet running until it has done something."""
    while not condition():
        fleet.keep_running()
        PAUSE.wait(POLL_S)


def events(fleet: Fleet) -> Sequence[str]:
    file = fleet.output / "events.jsonl"
    return [row["kind"] for row in rows(file)] if file.exists() else []


def main() -> int:
    """Run, and tell what has grown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--pause", type=float, default=60.0, help="seconds between faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="kept if named")
    options = parser.parse_args()
    length_s = 60 * options.minutes
    with contextlib.ExitStack() as stack:
        root = options.output or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        fleet, chaos = start(root, options.seed, options.pause)
        stack.callback(fleet.close)
        wait_for(fleet, lambda: "round_finished" in events(fleet))
        samples = soak(fleet, chaos, length_s)
        kinds = collections.Counter(events(fleet))
        ledger = json.loads((root / "report.json").read_text())["ledger"]
        rounds = kinds["round_finished"]
        told = ("edge_lost", "device_restarted", "cloud_resumed", "session_moved", "round_again")
        print(f"{rounds} rounds, {len(chaos.faults)} faults; " + ", ".join(f"{kinds[k]} {k}" for k in told))
        print("ledger: " + ", ".join(f"{value} {key}" for key, value in ledger.items()))
        grown = judge(samples, length_s, rounds)
    print(f"GROWN: {', '.join(grown)}" if grown else "nothing has grown")
    return 1 if grown or ledger["lost"] or ledger["duplicated"] else 0


if __name__ == "__main__":
    sys.exit(main())
