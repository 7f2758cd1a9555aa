"""Fleets in memory on a bus that delays, repeats, reorders and loses; quick to build, so that many can run."""

import copy
import functools
import heapq
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from iotsplit.packet import Packet
from iotsplit.plan import PartPlan, Tier
from iotsplit.settings import Codec, FleetSettings, TrainingSettings
from iotsplit.tensors import adapters
from iotsplit.tensors import parts as model_parts
from iotsplit.tensors.parts import Part
from iotsplit_device.role import DeviceRole
from iotsplit_device.tokens import Tokens
from iotsplit_device.work import DeviceWork
from tests.support import Fleet, sequences

Fate = Callable[[str, Packet], Iterable[tuple[float, Packet]]]
"""What becomes of a packet on its way to an agent: copies, each after so many seconds."""

PATIENT = 1e6


def settings(**changes: Any) -> TrainingSettings:
    """Small steps for a tiny model.

    The codec is not checked: the name of the run decides which micro-batches are, and each says metrics.
    """
    plain: dict[str, Any] = {
        "rounds": 2,
        "local_steps": 2,
        "batch_size": 2,
        "micro_batches": 2,
        "sequence_length": 16,
        "cut": (1, 3),
        "codec": Codec.FP32,
        "codec_check": 0.0,
        "rank": 2,
        "alpha": 4.0,
        "learning_rate": 1e-2,
    }
    return TrainingSettings(**(plain | changes))


@functools.cache
def _pristine(model: Path, plan: PartPlan) -> Part:
    return model_parts.load_part(model, plan)


def quick_part(model: Path, plan: PartPlan) -> Part:
    """A part of its own, copied from one that was loaded before."""
    return copy.deepcopy(_pristine(model, plan))


class WeatherFleet(Fleet):
    """A fleet whose packets meet a fate; devices keep their part between sessions, as real ones do."""

    def __init__(
        self,
        model: Path,
        settings: TrainingSettings,
        devices: Iterable[str] = ("a", "b"),
        *,
        edges: int = 1,
        fate: Fate = lambda _, packet: [(0.0, packet)],
        **members: Any,
    ) -> None:
        self.fate = fate
        self.drops: dict[str, list[str]] = {}
        names = list(devices)
        fleet = FleetSettings(**({"devices": len(names), "edges": edges or 1, "once": True} | members))
        data = {name: sequences(name, 5) for name in names}
        self._members = fleet
        super().__init__(model, settings, data, edges=edges, fleet=fleet)

    def make_device(self, name: str, train: list[Tokens]) -> DeviceRole:
        made: list[DeviceWork] = []

        def load(settings: TrainingSettings) -> DeviceWork:
            if not made:
                part = quick_part(self._model, self._plans[Tier.DEVICE])
                adapters.inject(part, settings)
                made.append(DeviceWork(part, self.batches(name, train), settings))
            return made[0]

        return DeviceRole(birth=self._birth(name, Tier.DEVICE), load=load)

    def rejoin(self, name: str) -> None:
        """An agent starts again, knowing nothing."""
        is_edge = name.startswith("edge")
        self.join(self.make_edge(name) if is_edge else self.make_device(name, sequences(name, 5)))

    def restart_cloud(self, run: str) -> None:
        """The cloud starts again and knows nothing of its rounds."""
        self.join(self.make_cloud(self._members, run))

    def _deliver(self, name: str, packet: Packet, delay: float = 0.0) -> None:
        for each in self.tamper(name, packet):
            for after, copied in self.fate(name, each):
                at = self.now + delay + after
                heapq.heappush(self._queue, (at, next(self._count), self.agents[name], copied))

    def first_word(self, packet: Packet) -> str:
        return packet.topic.removeprefix(self._topics.root).partition("/")[0]


class Storm:
    """Loses, repeats and delays packets by a seed."""

    def __init__(self, seed: int, *, lose: float = 0.0, repeat: float = 0.0, delay_s: float = 0.0) -> None:
        self._chance = random.Random(seed)
        self._lose, self._repeat, self._delay_s = lose, repeat, delay_s

    def __call__(self, name: str, packet: Packet) -> list[tuple[float, Packet]]:
        del name
        if packet.topic.split("/", 2)[2].startswith("metrics/"):
            return [(0.0, packet)]  # heartbeats come through: silence has tests of its own
        if self._chance.random() < self._lose:
            return []
        copies = 1
        while copies < 4 and self._chance.random() < self._repeat:
            copies += 1
        return [(self._chance.uniform(0.0, self._delay_s), packet) for _ in range(copies)]
