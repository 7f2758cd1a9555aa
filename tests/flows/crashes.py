"""Fleets in memory whose agents, links and broker can die at any moment, and come back with their disks."""

import dataclasses
import heapq
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lz4.frame
import msgspec
import numpy as np
import safetensors.torch

from iotsplit import chunks
from iotsplit.agent import Agent, Sink
from iotsplit.messages import Contents, PackedTensor, Update, decode_content, encode_content
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
from tests.flows.weather import WeatherFleet

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
        self._given_up: dict[str, float] = {}  # when the broker takes one that sleeps for lost
        self._unread: dict[str, list[Packet]] = {}  # what has come while it sleeps
        self._cut: dict[str, list[Packet]] = {}  # what it says meanwhile
        self._doomed: dict[str, int] = {}  # dies after so many more packets
        self._tearing: dict[str, tuple[int, float]] = {}  # the link breaks after so many, for so many seconds
        self._heard: dict[tuple[str, str], int] = {}  # the newest epoch of a device that an agent has heard
        self.died: list[str] = []
        self.torn: list[tuple[str, float]] = []
        more = {"stragglers": Stragglers.WAIT} | more
        super().__init__(model, settings, devices, edges=edges, **more)

    # --- agents and their disks

    def make_cloud(self, fleet: FleetSettings, run: str = "") -> CloudRole:
        del run
        self._fleet_settings = fleet
        options = CloudOptions(training=self._settings, members=fleet, output=self._disks / "cloud")
        peft = adapters.peft_config(self._model, self._settings)
        self._store = Store(
            options.output, agent="cloud", settings=self._settings, model=self._info.fingerprint, peft=peft
        )
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

        store = self.device_store(name)
        saved, cached = store.load(), store.cached()
        store.close()
        return DeviceRole(birth=self._birth(name, Tier.DEVICE), load=load, saved=saved, cached=cached)

    def device_store(self, name: str) -> DeviceStore:
        """A device's disk."""
        return DeviceStore(self._disks / name, model=self._info.fingerprint)

    def sink_of(self, role: Role) -> Sink:
        stores: dict[Tier, Callable[[Local | Metrics | Event], None]] = {
            Tier.DEVICE: self.device_store(role.agent).take,
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
            for table in (self._asleep, self._given_up, self._unread, self._cut, self._doomed, self._tearing):
                table.pop(name, None)
            self._heard = {key: epoch for key, epoch in self._heard.items() if key[0] != name}
            if name == "cloud":
                self._store.close("failed")
            self.died.append(name)
            self.lose(name)

    def doom(self, name: str, packets: int) -> None:
        """kill -9 in the middle of what it says next."""
        if name in self.agents:
            self._doomed[name] = packets

    def tear(self, name: str, packets: int, seconds: float) -> None:
        """Cut its link in the middle of what it says next; the rest is sent when the link is back."""
        if name in self.agents:
            self._tearing[name] = (packets, seconds)

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
            self._given_up[name] = self.now + KEEPALIVE_S

    def cut(self, name: str) -> None:
        """Cut an agent's link."""
        if name in self.agents and name not in self._cut:
            self._disconnect(name)

    def mend(self, name: str) -> None:
        """The link is back; a process that is frozen finds that out when it wakes."""
        agent = self.agents.get(name)
        if agent is None or name in self._asleep:
            return
        waiting = self._cut.pop(name, [])
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
        """What has come is still read, and answers wait for the link; what was under way is gone."""
        self._cut[name] = []
        self._filters[name] = frozenset()
        agent = self.agents[name]
        self._queue = [entry for entry in self._queue if entry[2] is not agent or entry[0] <= self.now]
        heapq.heapify(self._queue)
        self.publish(agent.last_will)

    def awake(self) -> list[Agent]:
        for name, at in list(self._given_up.items()):
            if at <= self.now:
                del self._given_up[name]
                if name not in self._cut:
                    self._disconnect(name)
        for name, until in list(self._asleep.items()):
            if until <= self.now:
                self._wake(name)
        return [agent for name, agent in self.agents.items() if name not in self._asleep]

    def _wake(self, name: str) -> None:
        """It reads what has come meanwhile, and only then learns that the link has broken."""
        del self._asleep[name]
        self._given_up.pop(name, None)
        for packet in self._unread.pop(name, []):
            if name in self.agents:
                self._receive(self.agents[name], packet)
        if name in self._cut:
            self.mend(name)

    def publish(self, packet: Packet) -> None:
        super().publish(packet)
        self._hear("cloud", packet)  # what it says, it knows

    def _receive(self, agent: Agent, packet: Packet) -> None:
        name = agent.role.agent
        if name in self._asleep:
            self._unread.setdefault(name, []).append(packet)
            return
        packet = self._spoiled(name, packet)
        self._hear(name, packet)
        super()._receive(agent, packet)

    def _say(self, agent: Agent, packets: list[Packet]) -> None:
        name = agent.role.agent
        if name in self._doomed and len(packets) > self._doomed[name]:
            for packet in packets[: self._doomed[name]]:
                self._publish_of(name, packet)
            self.kill(name)
            return
        for packet in self._said_until_torn(name, packets):
            self._publish_of(name, packet)
        if name in self._cut:
            for packet in agent.birth():
                self._publish_of(name, packet)
        elif name in self.agents:
            self._settle(agent)

    def _said_until_torn(self, name: str, packets: list[Packet]) -> Iterator[Packet]:
        """The same packets; if the link is to break in the midst of them, it has when the rest comes."""
        if name in self._tearing and name not in self._cut:
            count, seconds = self._tearing[name]
            if any(map(self._is_of_a_session, packets[count:])):
                del self._tearing[name]
                yield from packets[:count]
                self._disconnect(name)
                self.torn.append((name, seconds))
                packets = packets[count:]
        yield from packets

    def _publish_of(self, name: str, packet: Packet) -> None:
        if name not in self._cut:
            self.publish(packet)
        elif packet.qos:
            self._cut[name].append(packet)

    def _is_of_a_session(self, packet: Packet) -> bool:
        return self.first_word(packet) in ("lan", "wan", "update")

    # --- what is over

    def _hear(self, name: str, packet: Packet) -> None:
        if self.first_word(packet) == "assign":
            assignment = decode_state(packet.payload, Assignment)
            key = (name, assignment.device)
            self._heard[key] = max(assignment.epoch, self._heard.get(key, 0))

    def _spoiled(self, name: str, packet: Packet) -> Packet:
        """What a fenced edge has said is made wrong for who knows better, so that it shows if it is taken."""
        if not self._is_of_a_session(packet):
            return packet
        chunk = chunks.read(packet.payload)
        current = self._heard.get((name, chunk.head.device), 0)
        if chunk.head.epoch >= current or chunk.head.tier != Tier.EDGE:
            return packet
        body = lz4.frame.decompress(chunk.data) if chunk.packing == chunks.LZ4 else chunk.data
        (payload,) = chunks.cut(encode_content(_turned_round(decode_content(body))), chunk.head)
        return dataclasses.replace(packet, payload=payload)


def _turned_round(content: Contents) -> Contents:
    """The same with the opposite numbers."""
    if isinstance(content, Update):
        tensors = {name: -value for name, value in safetensors.torch.load(content.tensors).items()}
        return msgspec.structs.replace(content, tensors=safetensors.torch.save(tensors))
    changes = {
        name: msgspec.structs.replace(tensor, data=(-np.frombuffer(tensor.data, "<f4")).tobytes())
        for name in ("hidden", "gradient")
        if isinstance(tensor := getattr(content, name, None), PackedTensor)
    }
    return msgspec.structs.replace(content, **changes)
