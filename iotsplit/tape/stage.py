"""A whole fleet in one thread: real agents on a bus in memory, a clock turned by hand, and a tape that runs."""

import heapq
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from iotsplit.agent import Agent, Sink
from iotsplit.errors import RunFailedError
from iotsplit.mailbox import Mailbox
from iotsplit.packet import Packet
from iotsplit.plan import Tier
from iotsplit.role import Local
from iotsplit.runtime.memory import matches
from iotsplit.runtime.runner import HEARTBEAT_S, due_command
from iotsplit.settings import FleetSettings, TrainingSettings
from iotsplit.states import Birth, Command, Event, Metrics
from iotsplit.tape.casting import Actor, Props, find_cast
from iotsplit.tape.files import TapeWriter
from iotsplit.tape.format import Header, Record
from iotsplit.topics import Topics

TURN_S = 0.001
"""What it takes an agent to treat one message, so that a tape shows an order."""
STEP_NS = 1000
"""Between two messages of one breath."""
MOST_TURNS = 1_000_000


@dataclass(slots=True)
class _Member:
    actor: Actor
    agent: Agent
    filters: frozenset[str] = frozenset()


class MemoryFleet:
    """Agents on a bus in memory; everything that is said is kept, and can be written to a tape.

    Args:
        model: directory or name of the model.
        devices: data of each device, by id.
        disk: a directory for what agents keep.
        edges: ids of the edges.
        training: the fleet's settings.
        fleet: who is waited for, and when rounds run; by default all, and one round after the other.
        name: of the fleet.
        eval_limit: most held-out sequences of a device.
    """

    def __init__(  # noqa: PLR0913 - a fleet has so many sides
        self,
        model: Path | str,
        devices: Mapping[str, Path | str],
        disk: Path,
        *,
        edges: tuple[str, ...] = ("edge-1",),
        training: TrainingSettings,
        fleet: FleetSettings | None = None,
        name: str = "memory",
        eval_limit: int | None = None,
    ) -> None:
        self.now = 0.0
        self.records: list[Record] = []
        """Everything that was said."""
        self.events: list[Event] = []
        self.metrics: list[Metrics] = []
        """What agents have said of their steps, and their heartbeats."""
        self.topics = Topics(name)
        self._model, self._devices, self._disk = model, dict(devices), disk
        self._training = training
        self._fleet = fleet or FleetSettings(devices=len(devices), edges=len(edges), once=True)
        self._eval_limit = eval_limit
        self._members: dict[str, _Member] = {}
        self._tiers = {"cloud": Tier.CLOUD} | dict.fromkeys(edges, Tier.EDGE)
        self._tiers |= dict.fromkeys(devices, Tier.DEVICE)
        self._retained: dict[str, Packet] = {}
        self._queue: list[tuple[float, int, Agent, Packet]] = []
        self._count = itertools.count(1)
        self._heartbeat_at = HEARTBEAT_S
        self._mono_ns = 0
        for agent in self._tiers:
            self.start(agent)

    # --- agents

    def start(self, name: str) -> None:
        """Start an agent, with what it has kept; a new incarnation."""
        tier = self._tiers[name]
        birth = Birth(
            agent=name, role=tier, online=True, incarnation=next(self._count), model=self._fingerprint()
        )
        props = Props(
            birth=birth,
            model=str(self._model),
            disk=self._disk / name,
            data=str(self._devices.get(name, "")),
            eval_limit=self._eval_limit,
            training=self._training,
            fleet=self._fleet,
            fleet_name=self.topics.fleet,
            run=f"run{birth.incarnation}",
        )
        actor = find_cast(tier)(props)
        agent = Agent(actor.role, Mailbox(self.topics, name), sink=self._sink(actor))
        self._members[name] = _Member(actor, agent)
        self._settle(self._members[name])

    def lose(self, name: str) -> None:
        """An agent dies at once; the broker says its last will, and what was on its way to it is gone."""
        member = self._members.pop(name)
        member.actor.close()
        self._publish(member.agent.last_will)

    def ask(self, verb: str, *, version: int | None = None) -> None:
        """A person's request to the cloud, such as ``rollback``."""
        command = Command(id=f"ask-{next(self._count)}", verb=verb, version=version)
        for packet in Mailbox(self.topics, "person").outgoing(command):
            self._publish(packet)

    def due(self) -> None:
        """The round clock strikes."""
        cloud = self._members["cloud"]
        self._say(cloud, cloud.agent.encode(cloud.agent.handle(due_command(), self.now)))

    def close(self) -> None:
        """End all agents, without a word."""
        for member in self._members.values():
            member.actor.close()
        self._members.clear()

    # --- time

    def run(self, until: Callable[["MemoryFleet"], bool] | None = None) -> None:
        """Deliver, tick and turn the clock, until something holds or the cloud has finished.

        Raises:
            RunFailedError: it never does.
        """
        for _ in range(MOST_TURNS):
            if until(self) if until is not None else self._is_finished:
                return
            self._turn()
        raise RunFailedError(f"the fleet still runs at {self.now:.0f} s", fix="look at its tape")

    def happened(self, kind: str) -> int:
        """How many events of a kind there were."""
        return sum(event.kind == kind for event in self.events)

    def write(self, path: Path) -> None:
        """Write everything that was said so far to a tape."""
        header = Header(made_by="iotsplit.testing", filters=(f"{self.topics.root}#",), fleet=self.topics.fleet)
        with TapeWriter(path, header) as writer:
            for record in self.records:
                writer.add(record)

    @property
    def _is_finished(self) -> bool:
        return "cloud" in self._members and self._members["cloud"].actor.role.finished

    def _turn(self) -> None:
        if self._queue and self._queue[0][0] <= self.now:
            _, _, agent, packet = heapq.heappop(self._queue)
            member = self._members.get(agent.role.agent)
            message = agent.decode(packet) if member is not None and member.agent is agent else None
            if member is not None and message is not None:
                self._say(member, agent.encode(agent.handle(message, self.now)))
                self.now += TURN_S
            return
        for member in self._members.values():
            if member.actor.role.next_tick(self.now) <= self.now:
                self._say(member, member.agent.encode(member.agent.tick(self.now)))
                self.now += TURN_S
                return
        self._turn_clock()

    def _turn_clock(self) -> None:
        due = [member.actor.role.next_tick(self.now) for member in self._members.values()]
        self.now = min([*due, *(entry[0] for entry in self._queue[:1]), self._heartbeat_at])
        if self._heartbeat_at <= self.now:
            self._heartbeat_at = self.now + HEARTBEAT_S
            for member in list(self._members.values()):
                self._say(member, member.agent.heartbeat(0))

    # --- the bus

    def _publish(self, packet: Packet) -> None:
        self._mono_ns = max(self._mono_ns + STEP_NS, int(self.now * 1e9))
        self.records.append(
            Record(self._mono_ns, self._mono_ns, packet.topic, packet.payload, packet.qos, False, "memory")
        )
        if packet.retain:
            self._retained.pop(packet.topic, None)
            if packet.payload:
                self._retained[packet.topic] = packet
        live = Packet(topic=packet.topic, payload=packet.payload, qos=packet.qos)
        for member in self._members.values():
            if any(matches(each, packet.topic) for each in member.filters):
                self._deliver(member, live)

    def _deliver(self, member: _Member, packet: Packet) -> None:
        heapq.heappush(self._queue, (self.now, next(self._count), member.agent, packet))

    def _say(self, member: _Member, packets: list[Packet]) -> None:
        for packet in packets:
            self._publish(packet)
        self._settle(member)

    def _settle(self, member: _Member) -> None:
        for packet in member.agent.birth():
            self._publish(packet)
        new = member.agent.filters - member.filters
        member.filters = member.agent.filters
        for topic, packet in self._retained.items():
            if any(matches(each, topic) for each in new):
                self._deliver(member, packet)

    def _sink(self, actor: Actor) -> Sink:
        def sink(kept: Local | Metrics | Event) -> None:
            actor.sink(kept)
            if isinstance(kept, Event):
                self.events.append(kept)
            elif isinstance(kept, Metrics):
                self.metrics.append(kept)

        return sink

    def _fingerprint(self) -> str:
        from iotsplit.runtime.serve import cache_directory  # noqa: PLC0415 - as below
        from iotsplit.tensors.models import describe, resolve  # noqa: PLC0415 - needs torch

        return describe(resolve(str(self._model), cache_directory())).fingerprint
