"""A thousand light devices on one Mosquitto: time, messages, memory, CPU, and how the cloud's share grows.

    scripts/load --devices 10 100 1000 --edges 20 --rounds 5

Roles, agents, mailboxes, runners and links are the real ones, and each agent has a connection of its own; only
the model is tiny (a few hundred parameters), and many agents share a process. The cloud is a real `iotsplit
cloud`. Exits with 1 if a round is not whole, or if a step is lost or applied twice.
"""

import argparse
import contextlib
import itertools
import json
import os
import resource
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from transformers.utils import logging as transformers_logging

from benchmarks.fleet import PAUSE, rows
from benchmarks.load_agents import hosts
from benchmarks.load_fleet import LOOK_EVERY_S, MODEL, STEPS, Size, cloud_of, mosquitto
from benchmarks.load_watcher import DELIVERED, PUBLISHED, Watcher
from iotsplit.plan import Tier
from iotsplit.runtime import clock
from iotsplit.settings import TrainingSettings
from iotsplit.tensors.models import describe
from tests.support import tiny_model

OPEN_FILES = 8192
LIMIT_S = 3600.0
MIB = 1 << 20


# --- what one size comes to


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one size of a fleet came to."""

    devices: int
    joined_s: float
    rounds_s: list[float]
    published: float
    delivered: float
    cloud_s: list[float]
    broker_s: list[float]
    agents_s: list[float]
    cloud_rss: int
    broker_rss: int
    ledger: dict[str, int]
    is_whole: bool
    steps: int
    """Device-steps of a round."""
    messages: float
    """What the cloud was told in a round: frames, and progress and heartbeats of agents."""

    @property
    def is_clean(self) -> bool:
        """Whether all rounds are whole and nothing was lost or came twice."""
        return self.is_whole and self.ledger["lost"] == self.ledger["duplicated"] == 0

    @property
    def cloud_ms(self) -> float:
        """The cloud's CPU time for one step of one device."""
        return 1e3 * statistics.median(self.cloud_s) / self.steps

    @property
    def message_ms(self) -> float:
        """The cloud's CPU time for one message."""
        return 1e3 * sum(self.cloud_s) / len(self.cloud_s) / self.messages


def told(size: Size, start: float, end: float) -> float:
    """Messages that the cloud took for a round between two times of day."""
    heard = [row for row in rows(size.root / "out" / "metrics.jsonl") if row["role"] != Tier.CLOUD]
    metrics = len([row for row in heard if start <= row["time"] <= end])
    frames = size.devices * (size.settings.local_steps + 2)  # activations, and two updates
    return metrics / size.settings.rounds + frames


def last_words(size: Size) -> str:
    """The end of what agents and cloud have logged."""
    logs = [size.root / "agents.log", size.root / "cloud.log"]
    return "\n".join(f"{log.name}: {log.read_text()[-1000:]}" for log in logs if log.exists())


def measured(size: Size, more: Sequence[str]) -> Row:
    """Run a fleet to its end."""
    size.root.mkdir()
    started = clock.now()
    cloud_rss = broker_rss = 0
    with contextlib.ExitStack() as stack:
        port, broker = stack.enter_context(mosquitto(size.root / "broker"))
        cloud = stack.enter_context(cloud_of(size, port, more))
        agents = stack.enter_context(hosts(size, port))
        pids = [process.pid or 0 for process in agents]
        watcher = stack.enter_context(
            contextlib.closing(Watcher(port, cloud=cloud.pid, broker=broker, agents=pids))
        )
        while cloud.poll() is None:
            if clock.now() > started + LIMIT_S or not all(process.is_alive() for process in agents):
                raise SystemExit(f"agents have ended, or it took {LIMIT_S:.0f} s; {last_words(size)}")
            with contextlib.suppress(psutil.NoSuchProcess):
                cloud_rss = max(cloud_rss, watcher.cloud.memory_info().rss)
                broker_rss = max(broker_rss, watcher.broker.memory_info().rss)
            PAUSE.wait(LOOK_EVERY_S)
    report = json.loads((size.root / "out" / "report.json").read_text())
    whole = [len(each["sessions"]) == size.devices and not each["dropped"] for each in report["rounds"]]
    moments = watcher.moments[: size.settings.rounds + 1]
    pairs = list(itertools.pairwise(moments))
    return Row(
        devices=size.devices,
        joined_s=moments[0].at - started,
        rounds_s=[each["wall_s"] for each in report["rounds"]],
        published=watcher.per_second(PUBLISHED, moments),
        delivered=watcher.per_second(DELIVERED, moments),
        cloud_s=[after.cloud_s - before.cloud_s for before, after in pairs],
        broker_s=[after.broker_s - before.broker_s for before, after in pairs],
        agents_s=[after.agents_s - before.agents_s for before, after in pairs],
        cloud_rss=cloud_rss,
        broker_rss=broker_rss,
        ledger=report["ledger"],
        is_whole=len(whole) == size.settings.rounds and all(whole),
        steps=size.devices * size.settings.local_steps,
        messages=told(size, moments[0].wall, moments[-1].wall),
    )


# --- what is printed


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def table(sizes: Sequence[Row]) -> None:
    """A line per size, and how the cloud's share grows."""
    print("devices  joined s  s per round (median, range)   msg/s in  msg/s out")
    for row in sizes:
        print(
            f"{row.devices:7} {row.joined_s:9.1f}  {_spread(row.rounds_s):28} "
            f"{row.published:9.0f} {row.delivered:10.0f}"
        )
    print("devices  CPU s per round: cloud          broker               agents     RSS MiB: cloud  broker")
    for row in sizes:
        print(
            f"{row.devices:7}  {_spread(row.cloud_s):22} {_spread(row.broker_s):20} "
            f"{statistics.median(row.agents_s):6.1f} {row.cloud_rss / MIB:16.0f} {row.broker_rss / MIB:7.0f}"
        )
    print("devices  cloud ms: per step of a device  per message  (times the size before)  ledger")
    for before, row in zip([None, *sizes], sizes, strict=False):
        grown = "" if before is None else f"{row.cloud_ms / before.cloud_ms:.2f}, "
        grown += "" if before is None else f"{row.message_ms / before.message_ms:.2f}"
        ledger = ", ".join(f"{value} {key}" for key, value in row.ledger.items())
        print(
            f"{row.devices:7} {row.cloud_ms:31.2f} {row.message_ms:12.2f}  {grown:24} {ledger}"
            f"{'' if row.is_whole else ', NOT ALL ROUNDS WHOLE'}"
        )


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--edges", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--local-steps", type=int, default=2)
    parser.add_argument("--output", type=Path, help="kept if named")
    parser.add_argument("more", nargs="*", help="more options of the cloud, behind --")
    return parser.parse_args()


def main() -> int:
    """Run a fleet of each size."""
    options = parsed()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, OPEN_FILES)), hard))
    settings = TrainingSettings(**STEPS, rounds=options.rounds, local_steps=options.local_steps)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    sizes = []
    with contextlib.ExitStack() as stack:
        root = options.output or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        root.mkdir(parents=True, exist_ok=True)
        model = tiny_model(root / "model", **MODEL)
        print(
            f"{describe(model).parameters} parameters, {options.rounds} rounds of {options.local_steps} steps, "
            f"{options.edges} edges, {os.cpu_count()} cores for all of it",
            flush=True,
        )
        for devices in options.devices:
            size = Size(
                root=root / str(devices), model=model, devices=devices, edges=options.edges, settings=settings
            )
            sizes.append(measured(size, options.more))
            print(f"  {devices} devices: {_spread(sizes[-1].rounds_s)} s per round", flush=True)
    table(sizes)
    return 0 if all(row.is_clean for row in sizes) else 1


if __name__ == "__main__":
    sys.exit(main())
