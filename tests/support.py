"""A whole fleet in one thread: real roles and mailboxes on a bus of lists, with a clock turned by hand."""

import functools
import heapq
import itertools
import random
import string
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import torch
from paho.mqtt.client import topic_matches_sub
from transformers import AutoConfig, AutoModelForCausalLM

from iotsplit.agent import Agent, Sink
from iotsplit.mailbox import Mailbox
from iotsplit.packet import Packet
from iotsplit.plan import Tier, cut_model
from iotsplit.role import Local, Role
from iotsplit.runtime.runner import HEARTBEAT_S, due_command
from iotsplit.settings import FleetSettings, TrainingSettings
from iotsplit.states import Birth, Event, Metrics
from iotsplit.tensors import adapters, tiny
from iotsplit.tensors.models import describe
from iotsplit.tensors.parts import load_part
from iotsplit.topics import Topics
from iotsplit_cloud.caches import Caches
from iotsplit_cloud.chronicle import Chronicle
from iotsplit_cloud.conductor import Parts
from iotsplit_cloud.members import Members
from iotsplit_cloud.records import Milestone
from iotsplit_cloud.report import Report, new_report
from iotsplit_cloud.role import CloudRole
from iotsplit_cloud.tail import Tail
from iotsplit_cloud.versions import Library, Version
from iotsplit_device.batches import Batches
from iotsplit_device.role import DeviceRole
from iotsplit_device.tokens import Tokens
from iotsplit_device.work import DeviceWork
from iotsplit_edge.role import EdgeRole
from iotsplit_edge.work import EdgeWork

Tamper = Callable[[str, Packet], Iterable[Packet]]

TINY = {
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


matches = functools.lru_cache(maxsize=1 << 16)(topic_matches_sub)


def tiny_model(directory: Path, **changes: object) -> Path:
    """A random llama of five small layers, saved as a model directory."""
    torch.manual_seed(11)
    wanted: dict[str, Any] = TINY | changes
    config = AutoConfig.for_model(**wanted)
    make: Any = AutoModelForCausalLM.from_config
    make(config).save_pretrained(directory)
    return directory


def letters_model(directory: Path) -> Path:
    """The same with a tokenizer that reads single letters."""
    tiny_model(directory)
    tiny.write_tokenizer(directory, string.ascii_lowercase + " \n")
    return directory


def sequences(name: str, count: int, *, longest: int = 12, vocabulary: int = 61) -> list[Tokens]:
    """Made-up sequences with a loss on their second half."""
    chance = random.Random(name)
    found = []
    for _ in range(count):
        ids = [chance.randrange(vocabulary) for _ in range(chance.randint(4, longest))]
        following = [*ids[1:], 0]
        half = len(ids) // 2
        found.append(Tokens(tuple(ids), tuple([-100] * half + following[half:])))
    return found


class Fleet:
    """Agents on a bus in memory.

    Args:
        model: model directory.
        settings: the fleet's settings.
        devices: training sequences by device.
        edges: number of edges.
        fleet: the cloud's settings.
    """

    def __init__(
        self,
        model: Path,
        settings: TrainingSettings,
        devices: dict[str, list[Tokens]],
        *,
        edges: int = 1,
        fleet: FleetSettings | None = None,
    ) -> None:
        self.now = 0.0
        self.tamper: Tamper = lambda _, packet: [packet]
        self.events: list[Event] = []
        self.metrics: list[Metrics] = []
        self.versions: list[Version] = []
        self.milestones: list[Milestone] = []
        self.packets = 0
        self._heartbeat_at = 0.0
        self.agents: dict[str, Agent] = {}
        self._retained: dict[str, Packet] = {}
        self._filters: dict[str, frozenset[str]] = {}
        self._queue: list[tuple[float, int, Agent, Packet]] = []
        self._count = itertools.count()
        self._topics = Topics("test")
        self._model, self._settings = model, settings
        self._info = describe(model)
        self._plans = cut_model(self._info.layers, settings.cut, settings.labels)
        members = fleet or FleetSettings(devices=len(devices), edges=edges or 1, once=True)
        self.join(self.make_cloud(members))
        for number in range(1, edges + 1):
            self.join(self.make_edge(f"edge-{number}"))
        for name, train in devices.items():
            self.join(self.make_device(name, train))

    # --- agents

    def make_cloud(self, fleet: FleetSettings, run: str = "abc") -> CloudRole:
        part = load_part(self._model, self._plans[Tier.CLOUD])
        adapters.inject(part, self._settings)
        tail = Tail(part, self._settings)
        whole = adapters.initial(self._model, self._settings)
        sections = {str(t): adapters.to_bytes(adapters.select(whole, self._plans[t])) for t in Tier}
        first = Version(version=0, round=0, sections=sections)
        library = Library(
            model=self._info.fingerprint,
            peft=adapters.peft_config(self._model, self._settings),
            chunk_bytes=61440,
            shapes={t: {n: tuple(v.shape) for n, v in first.section(t).items()} for t in Tier},
            settings=self._settings,
            held=[first],
        )
        tail.load(first.sections[Tier.CLOUD])
        parts = Parts(
            settings=self._settings,
            fleet=fleet,
            tail=tail,
            library=library,
            members=Members(model=self._info.fingerprint, plans=self._plans),
            chronicle=Chronicle(new_report("test", {}, self._settings)),
            caches=Caches(self._settings, {}),
        )
        return CloudRole(birth=self._birth("cloud", Tier.CLOUD), parts=parts, run=run)

    def make_edge(self, name: str) -> EdgeRole:
        part = load_part(self._model, self._plans[Tier.EDGE])
        adapters.inject(part, self._settings)

        def load(settings: TrainingSettings, adapter: bytes, round_: int) -> EdgeWork:
            return EdgeWork(part, settings, adapter, round_)

        return EdgeRole(birth=self._birth(name, Tier.EDGE), load=load)

    def make_device(self, name: str, train: list[Tokens]) -> DeviceRole:
        def load(settings: TrainingSettings) -> DeviceWork:
            part = load_part(self._model, self._plans[Tier.DEVICE])
            adapters.inject(part, settings)
            return DeviceWork(part, self.batches(name, train), settings)

        return DeviceRole(birth=self._birth(name, Tier.DEVICE), load=load)

    def batches(self, name: str, train: list[Tokens]) -> Batches:
        return Batches(
            train,
            sequences(f"{name} held out", 3),
            seed=self._settings.seed,
            device=name,
            batch_size=self._settings.batch_size,
            micro_batches=self._settings.micro_batches,
        )

    def _birth(self, name: str, role: Tier) -> Birth:
        incarnation = next(self._count) + 1
        return Birth(agent=name, role=role, online=True, incarnation=incarnation, model=self._info.fingerprint)

    # --- the bus

    def join(self, role: Role) -> None:
        agent = Agent(role, Mailbox(self._topics, role.agent), sink=self.sink_of(role))
        self.agents[role.agent] = agent
        self._filters[role.agent] = frozenset()
        self._settle(agent)

    def sink_of(self, role: Role) -> Sink:
        """Where an agent keeps what is its own."""
        del role
        return self._keep

    def lose(self, name: str) -> None:
        """An agent dies; the broker says its last will, and what was on its way to it is gone."""
        will = self.agents.pop(name).last_will
        del self._filters[name]
        self.publish(will)

    def publish(self, packet: Packet) -> None:
        self.packets += 1
        if packet.retain:
            self._retained[packet.topic] = packet
        live = Packet(topic=packet.topic, payload=packet.payload, qos=packet.qos)
        for name, filters in self._filters.items():
            if any(matches(each, packet.topic) for each in filters):
                self._deliver(name, live)

    def _deliver(self, name: str, packet: Packet, delay: float = 0.0) -> None:
        for each in self.tamper(name, packet):
            heapq.heappush(self._queue, (self.now + delay, next(self._count), self.agents[name], each))

    def _settle(self, agent: Agent) -> None:
        name = agent.role.agent
        for packet in agent.birth():
            self.publish(packet)
        new = agent.filters - self._filters[name]
        self._filters[name] = agent.filters
        for topic, packet in list(self._retained.items()) if new else ():
            if packet.payload and any(matches(each, topic) for each in new):
                self._deliver(name, packet)

    def _say(self, agent: Agent, packets: list[Packet]) -> None:
        for packet in packets:
            self.publish(packet)
        self._settle(agent)

    def _keep(self, kept: Local | Metrics | Event) -> None:
        match kept:
            case Event():
                self.events.append(kept)
            case Metrics():
                self.metrics.append(kept)
            case Version():
                self.versions.append(kept)
            case Milestone():
                self.milestones.append(kept)

    # --- time

    def run(self, *, until: Callable[["Fleet"], bool] | None = None, limit: int = 200_000) -> None:
        """Deliver, tick and turn the clock until the cloud has finished."""
        for _ in range(limit):
            if until(self) if until else self.agents["cloud"].role.finished:
                return
            self._one()
        raise AssertionError(f"still running after {limit} events at {self.now:.0f} s")

    def _one(self) -> None:
        if self._queue and self._queue[0][0] <= self.now:
            _, _, agent, packet = heapq.heappop(self._queue)
            if self.is_connected(agent):
                self._receive(agent, packet)
            return
        for agent in self.awake():
            if agent.role.next_tick(self.now) <= self.now:
                self._say(agent, agent.encode(agent.tick(self.now)))
                return
        due = [agent.role.next_tick(self.now) for agent in self.awake()]
        self.now = min([*due, *(entry[0] for entry in self._queue[:1]), self._heartbeat_at])
        if self._heartbeat_at <= self.now:
            self._heartbeat_at = self.now + HEARTBEAT_S
            for agent in self.awake():
                self._say(agent, agent.heartbeat(0))

    def _receive(self, agent: Agent, packet: Packet) -> None:
        message = agent.decode(packet)
        if message is not None:
            self._say(agent, agent.encode(agent.handle(message, self.now)))

    def is_connected(self, agent: Agent) -> bool:
        """Whether packets reach an agent; not if it has died or was started anew since."""
        return self.agents.get(agent.role.agent) is agent

    def awake(self) -> list[Agent]:
        """Agents that run."""
        return list(self.agents.values())

    @property
    def pending(self) -> bool:
        """Whether something is still on its way."""
        return bool(self._queue)

    def due(self) -> None:
        """The round clock strikes."""
        cloud = self.agents["cloud"]
        self._say(cloud, cloud.encode(cloud.handle(due_command(), self.now)))

    @property
    def report(self) -> Report:
        """The last one, with the rounds that the milestones tell of."""
        rows = {milestone.row["round"]: milestone.row for milestone in self.milestones if milestone.row}
        return msgspec.structs.replace(self.milestones[-1].report, rounds=list(rows.values()))

    def adapter(self) -> dict[str, torch.Tensor]:
        return self.versions[-1].tensors()

    @property
    def dropped(self) -> int:
        return sum(agent.dropped for agent in self.agents.values())
