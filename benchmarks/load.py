"""A thousand light devices on one Mosquitto: time, messages, memory, CPU, and how the cloud's share grows.

    scripts/load --devices 10 100 1000 --edges 20 --rounds 5

Roles, agents, mailboxes, runners and links are the real ones, and each agent has a connection of its own; only
the model is tiny (a few hundred parameters), and many agents share a process. The cloud is a real `iotsplit
cloud`. Exits with 1 if a round is not whole, or if a step is lost or applied twice.
"""

import argparse
import contextlib
import faulthandler
import itertools
import json
import multiprocessing
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import traceback
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers.utils import logging as transformers_logging

from benchmarks.fleet import PAUSE, listens, rows
from iotsplit.agent import Agent
from iotsplit.chunks import CHUNK_BYTES
from iotsplit.errors import PeerError
from iotsplit.mailbox import Mailbox
from iotsplit.messages import Message
from iotsplit.packet import Packet
from iotsplit.plan import Tier, cut_model
from iotsplit.role import Output, Role
from iotsplit.runtime import clock, processes, serve
from iotsplit.runtime.link import LinkChange
from iotsplit.runtime.mqtt import BrokerAddress, MqttLink
from iotsplit.runtime.runner import Runner, new_birth
from iotsplit.settings import TrainingSettings
from iotsplit.states import Event, State, decode_state
from iotsplit.tensors import adapters
from iotsplit.tensors.models import describe
from iotsplit.topics import Topics
from iotsplit_broker.process import find_mosquitto
from iotsplit_broker.settings import BrokerSettings, mosquitto_conf
from iotsplit_device.batches import Batches
from iotsplit_device.role import DeviceRole
from iotsplit_device.work import DeviceWork
from iotsplit_edge.role import EdgeRole
from iotsplit_edge.work import EdgeWork
from tests.flows.weather import quick_part
from tests.support import sequences, tiny_model

FLEET = "load"
VOCABULARY = 16
MODEL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 4,
    "intermediate_size": 4,
    "num_hidden_layers": 3,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "max_position_embeddings": 16,
    "tie_word_embeddings": True,
}
STEPS: dict[str, Any] = {
    "cut": (1, 2),
    "batch_size": 1,
    "micro_batches": 1,
    "sequence_length": 8,
    "rank": 1,
}
CHANGED = (*STEPS, "rounds", "local_steps")
PER_PROCESS = 100
"""Agents of a process: select, which paho waits with, takes no file above 1023, and a connection has three."""
OPEN_FILES = 8192
EDGE_PROCESSES = 2
STEP_TIMEOUT_S = 600
LIMIT_S = 3600.0
LOOK_EVERY_S = 0.2
PUBLISHED = "$SYS/broker/publish/messages/received"
DELIVERED = "$SYS/broker/publish/messages/sent"
MIB = 1 << 20


# --- agents


def device_role(name: str, model: Path, settings: TrainingSettings) -> Role:
    """A device with data of its own."""
    info = describe(model)
    part = quick_part(model, cut_model(info.layers, settings.cut, settings.labels)[Tier.DEVICE])
    adapters.inject(part, settings)
    batches = Batches(
        sequences(name, 2, longest=settings.sequence_length, vocabulary=VOCABULARY),
        sequences(f"{name} held out", 1, longest=settings.sequence_length, vocabulary=VOCABULARY),
        seed=settings.seed,
        device=name,
        batch_size=settings.batch_size,
        micro_batches=settings.micro_batches,
    )
    work = DeviceWork(part, batches, settings)
    birth = new_birth(name, Tier.DEVICE, model=info.fingerprint, threads=1)
    return DeviceRole(birth=birth, load=lambda _: work)


def edge_role(name: str, model: Path, settings: TrainingSettings) -> Role:
    """An edge; its sessions share its part."""
    info = describe(model)
    part = quick_part(model, cut_model(info.layers, settings.cut, settings.labels)[Tier.EDGE])
    adapters.inject(part, settings)
    birth = new_birth(name, Tier.EDGE, model=info.fingerprint, threads=1)
    return EdgeRole(birth=birth, load=lambda _, adapter: EdgeWork(part, settings, adapter))


ROLES = {Tier.DEVICE: device_role, Tier.EDGE: edge_role}
TURN = threading.Lock()


class Neighbour(Agent):
    """An agent that computes in turns with those that share its process.

    A hundred threads that want the interpreter's lock at once keep those waiting that answer the broker.
    """

    def handle(self, message: Message, now: float) -> Sequence[Output]:
        """Give a message to the role."""
        with TURN:
            return super().handle(message, now)

    def tick(self, now: float) -> Sequence[Output]:
        """Let the role do what is due."""
        with TURN:
            return super().tick(now)


def host(
    tier: Tier, names: Sequence[str], model: Path, settings: TrainingSettings, *, port: int, log: Path
) -> None:
    """Run many agents in this process, each as a process of its own would, until a signal ends it."""
    processes.die_with_parent()
    processes.return_freed_memory()
    faulthandler.enable()
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    serve.start_logging("warning")
    torch.set_num_threads(1)
    # Before any of them runs: a part is loaded in a context that all threads of a process are in.
    roles = [ROLES[tier](name, model, settings) for name in names]
    _learn_to_read()
    for role in roles:
        agent = Neighbour(role, Mailbox(Topics(FLEET), role.agent), wall=clock.wall)
        link = MqttLink(_address(port), serve.client_id(FLEET, tier, role.agent))
        runner = Runner(agent, link, largest_bytes=CHUNK_BYTES)
        threading.Thread(target=_run, args=(runner,), name=role.agent).start()


def _learn_to_read() -> None:
    # msgspec works out how to read a record when it first does; many threads at once have crashed it.
    for kind in typing.get_args(State):
        with contextlib.suppress(PeerError):
            decode_state(b"{}", kind)


def _run(runner: Runner) -> None:
    try:
        runner.run()
    finally:
        traceback.print_exc()
        os._exit(1)


def _address(port: int) -> BrokerAddress:
    return BrokerAddress.parse(f"mqtt://127.0.0.1:{port}")


# --- what is measured


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What had been used so far at the end of a round."""

    at: float
    wall: float
    cloud_s: float
    broker_s: float
    agents_s: float


def cpu_s(used: Sequence[psutil.Process]) -> float:
    """CPU seconds of processes so far."""
    times = [process.cpu_times() for process in used]
    return float(sum(each.user + each.system for each in times))


class Watcher:
    """Hears the cloud's events and the broker's own counters, and looks at the processes at each event.

    Args:
        port: of the broker.
        agents: processes that hold agents.
    """

    def __init__(self, port: int, *, cloud: int, broker: int, agents: Sequence[int]) -> None:
        self.cloud, self.broker = psutil.Process(cloud), psutil.Process(broker)
        self._agents = [psutil.Process(pid) for pid in agents]
        self._events = f"{Topics(FLEET).root}events"
        self.moments: list[Moment] = []
        self.counts: dict[str, list[tuple[float, int]]] = {PUBLISHED: [], DELIVERED: []}
        self._link = MqttLink(_address(port), "load-watcher")
        self._link.open(self._heard, last_will=None)
        self._link.subscribe(frozenset({self._events, *self.counts}))

    def _heard(self, packet: Packet | LinkChange) -> None:
        if not isinstance(packet, Packet):
            return
        if packet.topic in self.counts:
            self.counts[packet.topic].append((clock.now(), int(packet.payload)))
        elif decode_state(packet.payload, Event).kind in {"evaluated", "round_finished"}:
            self.moments.append(
                Moment(
                    at=clock.now(),
                    wall=clock.wall(),
                    cloud_s=cpu_s([self.cloud]),
                    broker_s=cpu_s([self.broker]),
                    agents_s=cpu_s(self._agents),
                )
            )

    def per_second(self, topic: str, moments: Sequence[Moment]) -> float:
        """Messages per second from the first moment to the last, to the broker's next second on both sides."""
        seen = self.counts[topic]
        start = max((each for each in seen if each[0] <= moments[0].at), default=seen[0])
        end = min((each for each in seen if each[0] >= moments[-1].at), default=seen[-1])
        return (end[1] - start[1]) / (end[0] - start[0])

    def close(self) -> None:
        """Hear no more."""
        self._link.close()


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


# --- one fleet


@dataclass(frozen=True, kw_only=True)
class Size:
    """One fleet to be measured; its files lie in `root`."""

    root: Path
    model: Path
    devices: int
    edges: int
    settings: TrainingSettings


@contextlib.contextmanager
def mosquitto(directory: Path) -> Iterator[tuple[int, int]]:
    """A broker configured as ours, whose counters come every second; gives its port and process id."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    directory.mkdir()
    settings = BrokerSettings(directory=directory, port=port)
    conf = directory / "mosquitto.conf"
    user = "root" if os.getuid() == 0 else None
    conf.write_text(f"{mosquitto_conf(settings, user=user)}sys_interval 1\n")
    process = processes.start([find_mosquitto() or "mosquitto", "-c", str(conf)], log=directory / "broker.log")
    try:
        while not listens(port):
            PAUSE.wait(LOOK_EVERY_S)
        yield port, process.pid
    finally:
        processes.stop(process)


@contextlib.contextmanager
def hosts(size: Size, port: int) -> Iterator[list[ForkServerProcess]]:
    """Processes that hold the agents."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.load"])
    devices = [f"d{number:04}" for number in range(size.devices)]
    edges = [f"edge-{number:02}" for number in range(size.edges)]
    shares = [(Tier.DEVICE, devices[at : at + PER_PROCESS]) for at in range(0, len(devices), PER_PROCESS)]
    shares += [(Tier.EDGE, edges[at::EDGE_PROCESSES]) for at in range(min(EDGE_PROCESSES, len(edges)))]
    here = {"port": port, "log": size.root / "agents.log"}
    started = [
        context.Process(target=host, args=(tier, names, size.model, size.settings), kwargs=here)
        for tier, names in shares
    ]
    try:
        for process in started:
            process.start()
        yield started
    finally:
        for process in started:
            process.kill()
            process.join()


@contextlib.contextmanager
def cloud_of(size: Size, port: int, more: Sequence[str]) -> Iterator["subprocess.Popen[bytes]"]:
    """A real cloud."""
    words = [sys.executable, "-m", "iotsplit", "cloud", f"--broker=mqtt://127.0.0.1:{port}", f"--fleet={FLEET}"]
    words += [f"--model={size.model}", f"--output={size.root / 'out'}", "--once"]
    words += [f"--devices={size.devices}", f"--edges={size.edges}", f"--step-timeout={STEP_TIMEOUT_S}"]
    for name in CHANGED:
        value = getattr(size.settings, name)
        text = ",".join(map(str, value)) if isinstance(value, tuple) else value
        words.append(f"--{name.replace('_', '-')}={text}")
    process = processes.start([*words, *more], log=size.root / "cloud.log")
    try:
        yield process
    finally:
        processes.stop(process)


def told(size: Size, start: float, end: float) -> float:
    """Messages that the cloud took for a round between two times of day."""
    heard = [row for row in rows(size.root / "out" / "metrics.jsonl") if row["role"] != Tier.CLOUD]
    metrics = len([row for row in heard if start <= row["time"] <= end])
    frames = size.devices * (size.settings.local_steps + 2)  # activations, and two updates
    return metrics / size.settings.rounds + frames


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
                raise SystemExit(f"agents have ended, or it took {LIMIT_S:.0f} s; see {size.root}")
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
