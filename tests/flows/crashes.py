"""Fleets in memory whose agents, links and broker die at any moment, by a schedule that follows from a seed.

In the manner of FoundationDB's and TigerBeetle's simulators: real roles, mailboxes and stores, one thread, a
clock turned by hand. A seed is the whole story of a run.
"""

import dataclasses
import functools
import heapq
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lz4.frame
import msgspec
import numpy as np

from iotsplit import chunks
from iotsplit.agent import Agent, Sink
from iotsplit.messages import PackedTensor, decode_content, encode_content
from iotsplit.packet import Packet
from iotsplit.plan import Tier
from iotsplit.role import Local, Role
from iotsplit.settings import FleetSettings, Stragglers, TrainingSettings
from iotsplit.states import (
    Assignment,
    Event,
    Metrics,
    decode_state,
)
from iotsplit.tensors import adapters
from iotsplit_cloud import command
from iotsplit_cloud.command import CloudOptions
from iotsplit_cloud.role import CloudRole
from iotsplit_cloud.store import Store
from iotsplit_device.role import DeviceRole
from iotsplit_device.store import DeviceStore
from iotsplit_device.tokens import Tokens
from iotsplit_device.work import DeviceWork
from tests.flows import weather
from tests.flows.weather import Storm, WeatherFleet

TOGETHER = 0.3
KEEPALIVE_S = 22.0
"""A broker takes a client that says nothing for so long for lost (one and a half times the keepalive)."""


class CrashFleet(WeatherFleet):
    """A fleet whose agents keep what real ones keep on their disks, and can die and come back.

    Args:
        disks: a directory for everybody's disk.
    """

    def __init__(
        self,
        model: Path,
        settings: TrainingSettings,
        devices: Sequence[str] = ("a", "b"),
        *,
        disks: Path,
        edges: int = 2,
        **more: Any,
    ) -> None:
        self._disks = disks
        self._asleep: dict[str, float] = {}  # until when
        self._cut: dict[str, list[Packet]] = {}  # what it says meanwhile
        self._doomed: dict[str, int] = {}  # dies after so many more packets
        self.died: list[str] = []
        more = {"stragglers": Stragglers.WAIT} | more
        super().__init__(model, settings, devices, edges=edges, **more)

    # --- agents and their disks

    def make_cloud(self, fleet: FleetSettings, run: str = "") -> CloudRole:
        del run
        self._fleet_settings = fleet
        options = CloudOptions(training=self._settings, members=fleet, output=self._disks / "cloud")
        peft = adapters.peft_config(self._model, self._settings)
        self._store = Store(options.output, agent="cloud", settings=self._settings, peft=peft)
        birth = self._birth("cloud", Tier.CLOUD)
        saved = self._store.load()
        return command.make_role(birth, self._model, self._info, options=options, peft=peft, saved=saved)

    def make_device(self, name: str, train: list[Tokens]) -> DeviceRole:
        made: list[DeviceWork] = []

        def load(settings: TrainingSettings) -> DeviceWork:
            if not made:
                part = weather.quick_part(self._model, self._plans[Tier.DEVICE])
                adapters.inject(part, settings)
                made.append(DeviceWork(part, self.batches(name, train), settings))
            return made[0]

        saved = self._device_store(name).load()
        return DeviceRole(birth=self._birth(name, Tier.DEVICE), load=load, saved=saved)

    def _device_store(self, name: str) -> DeviceStore:
        return DeviceStore(self._disks / name, model=self._info.fingerprint)

    def sink_of(self, role: Role) -> Sink:
        stores: dict[Tier, Callable[[Local | Metrics | Event], None]] = {
            Tier.DEVICE: self._device_store(role.agent).take,
            Tier.EDGE: lambda _: None,
        }
        take = self._store.take if role.tier is Tier.CLOUD else stores[role.tier]

        def sink(kept: Local | Metrics | Event) -> None:
            take(kept)
            self._keep(kept)

        return sink

    def close(self) -> None:
        """Close the cloud's files."""
        if "cloud" in self.agents:
            self._store.close("done")

    # --- what befalls them

    def kill(self, name: str) -> None:
        """kill -9, now."""
        if name in self.agents:
            self._asleep.pop(name, None)
            self._cut.pop(name, None)
            self._doomed.pop(name, None)
            if name == "cloud":
                self._store.close("failed")
            self.died.append(name)
            self.lose(name)

    def doom(self, name: str, packets: int) -> None:
        """kill -9 in the middle of what it says next."""
        if name in self.agents:
            self._doomed[name] = packets

    def start(self, name: str) -> None:
        """Start an agent again, with its disk."""
        if name in self.agents:
            return
        if name == "cloud":
            self.join(self.make_cloud(self._fleet_settings))
        else:
            self.rejoin(name)

    def freeze(self, name: str, seconds: float) -> None:
        """SIGSTOP, and SIGCONT later; the broker takes it for lost if that is long."""
        if name in self.agents and name not in self._cut:
            self._asleep[name] = self.now + seconds
            if seconds > KEEPALIVE_S:
                self._disconnect(name)

    def cut(self, name: str) -> None:
        """Cut an agent's link."""
        if name in self.agents and name not in self._cut:
            self._disconnect(name)

    def mend(self, name: str) -> None:
        """The link is back."""
        agent, waiting = self.agents.get(name), self._cut.pop(name, [])
        if agent is None:
            return
        self._filters[name] = frozenset()
        self._settle(agent)
        for packet in [*waiting, *agent.birth(renew=True)]:
            self.publish(packet)
        self._say(agent, agent.encode(agent.role.reconnected(self.now)))

    def restart_broker(self, *, forgets: bool) -> None:
        """Everybody loses the connection, and what was under way is gone."""
        if forgets:
            self._retained.clear()
        names = [name for name in self.agents if name not in self._cut]
        for name in names:
            self._disconnect(name)
        for name in names:
            self.mend(name)

    def _disconnect(self, name: str) -> None:
        self._cut[name] = []
        self._filters[name] = frozenset()
        agent = self.agents[name]
        self._queue = [entry for entry in self._queue if entry[2] is not agent]
        self.publish(agent.last_will)

    def awake(self) -> list[Agent]:
        for name, until in list(self._asleep.items()):
            if until <= self.now:
                del self._asleep[name]
                if name in self._cut:
                    self.mend(name)
        return [agent for name, agent in self.agents.items() if name not in self._asleep]

    def _receive(self, agent: Agent, packet: Packet) -> None:
        until = self._asleep.get(agent.role.agent)
        if until is None or until <= self.now:
            super()._receive(agent, packet)
        else:
            heapq.heappush(self._queue, (until, next(self._count), agent, packet))

    def _say(self, agent: Agent, packets: list[Packet]) -> None:
        name = agent.role.agent
        if name in self._doomed and len(packets) > self._doomed[name]:
            for packet in packets[: self._doomed[name]]:
                self._publish_of(name, packet)
            self.kill(name)
            return
        for packet in packets:
            self._publish_of(name, packet)
        if name in self._cut:
            for packet in agent.birth():
                self._publish_of(name, packet)
        elif name in self.agents:
            self._settle(agent)

    def _publish_of(self, name: str, packet: Packet) -> None:
        packet = self._spoiled(packet)
        if name in self._cut:
            if packet.qos:
                self._cut[name].append(packet)
        else:
            self.publish(packet)

    def _spoiled(self, packet: Packet) -> Packet:
        """What a fenced edge says is made wrong, so that it shows if anybody takes it."""
        if self.first_word(packet) not in ("lan", "wan"):
            return packet
        chunk = chunks.read(packet.payload)
        retained = self._retained.get(f"{self._topics.root}assign/{chunk.head.device}")
        current = decode_state(retained.payload, Assignment) if retained else None
        if current is None or chunk.head.epoch >= current.epoch or chunk.head.tier != Tier.EDGE:
            return packet
        body = lz4.frame.decompress(chunk.data) if chunk.packing == chunks.LZ4 else chunk.data
        content = decode_content(body)
        for name in ("hidden", "gradient"):
            tensor = getattr(content, name, None)
            if isinstance(tensor, PackedTensor):
                content = msgspec.structs.replace(content, **{name: _turned_round(tensor)})
        (payload,) = chunks.cut(encode_content(content), chunk.head)
        return dataclasses.replace(packet, payload=payload)


def _turned_round(tensor: PackedTensor) -> PackedTensor:
    values = np.frombuffer(tensor.data, "<f4")
    return msgspec.structs.replace(tensor, data=(-values).astype("<f4").tobytes())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that happens when so many packets have been published."""

    at: int
    kind: str
    agent: str = ""
    amount: float = 0.0

    def __str__(self) -> str:
        return f"{self.at:6} {self.kind} {self.agent} {self.amount:.1f}"


class Schedule:
    """Faults by a seed, done to a fleet as it goes on.

    Args:
        seed: of everything here.
        agents: whom faults may befall.
        packets: within how many packets they happen.
        most: faults at most.
    """

    def __init__(self, seed: int, agents: Sequence[str], *, packets: int, most: int = 5) -> None:
        chance = random.Random(seed)
        faults = [self._fault(chance, agents, packets) for _ in range(chance.randint(1, most))]
        # Two and three at once: the same happens to others in the same moment, or soon after.
        for fault in list(faults):
            if fault.agent and chance.random() < TOGETHER:
                others = chance.sample(list(agents), chance.randint(1, 2))
                faults += [
                    dataclasses.replace(fault, agent=other, at=fault.at + chance.choice((0, 0, 3, 15)))
                    for other in others
                ]
        self.faults = sorted(faults, key=lambda fault: fault.at)
        self._left = list(self.faults)
        self._later: list[tuple[float, Callable[[], None]]] = []

    @staticmethod
    def _fault(chance: random.Random, agents: Sequence[str], packets: int) -> Fault:
        kinds = ("kill", "kill", "doom", "doom", "freeze", "cut", "broker", "broker forgets")
        kind = chance.choice(kinds)
        longest = {"doom": 12.0, "freeze": 60.0}.get(kind, 40.0)
        return Fault(
            at=chance.randint(1, packets),
            kind=kind,
            agent=chance.choice(agents),
            amount=chance.uniform(0.0, longest) * chance.random(),
        )

    def __str__(self) -> str:
        return "\n".join(map(str, self.faults))

    def happen(self, fleet: CrashFleet) -> None:
        """Do what is due."""
        while self._left and self._left[0].at <= fleet.packets:
            self._do(self._left.pop(0), fleet)
        for name in fleet.died:
            pause = 5.0 if name == "cloud" else 9.0
            self._later.append(
                (
                    fleet.now + pause * random.Random(f"{name}{fleet.packets}").random(),
                    functools.partial(fleet.start, name),
                )
            )
        fleet.died.clear()
        due = [entry for entry in self._later if entry[0] <= fleet.now]
        self._later = [entry for entry in self._later if entry[0] > fleet.now]
        for _, act in due:
            act()

    @property
    def forgets(self) -> bool:
        """Whether the broker loses what it retained."""
        return any(fault.kind == "broker forgets" for fault in self.faults)

    @property
    def next_due(self) -> float:
        """When something is to come back."""
        return min((at for at, _ in self._later), default=float("inf"))

    def _do(self, fault: Fault, fleet: CrashFleet) -> None:
        match fault.kind:
            case "kill":
                fleet.kill(fault.agent)
            case "doom":
                fleet.doom(fault.agent, int(fault.amount))
            case "freeze":
                fleet.freeze(fault.agent, fault.amount)
            case "cut":
                fleet.cut(fault.agent)
                self._later.append((fleet.now + fault.amount, functools.partial(fleet.mend, fault.agent)))
            case _:
                fleet.restart_broker(forgets=fault.kind == "broker forgets")


def storm(seed: int) -> Storm:
    """Delays for all, and for half of the seeds loss and repetition."""
    chance = random.Random(f"storm {seed}")
    rough = chance.random() < 0.5
    return Storm(
        seed,
        lose=chance.uniform(0.0, 0.1) if rough else 0.0,
        repeat=chance.uniform(0.0, 0.2) if rough else 0.0,
        delay_s=chance.uniform(0.0, 1.0),
    )
