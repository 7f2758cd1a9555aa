"""Schedules of crashes that follow from a seed: what befalls a fleet, and when.

In the manner of FoundationDB's and TigerBeetle's simulators: real roles, mailboxes and stores, one thread, a
clock turned by hand. A seed is the whole story of a run.
"""

import dataclasses
import functools
import random
from collections.abc import Callable, Sequence

from tests.flows.crashes import CrashFleet
from tests.flows.weather import Storm

KINDS = ("kill", "kill", "doom", "doom", "freeze", "cut", "tear", "tear", "broker", "broker forgets")
MOST_PACKETS = {"doom": 12, "tear": 4}
"""Of what an agent still says before it dies, or before its link breaks."""
TOGETHER = 0.3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that happens when so many packets have been published."""

    at: int
    kind: str
    agent: str = ""
    seconds: float = 0.0
    packets: int = 0

    def __str__(self) -> str:
        return f"{self.at:6} {self.kind} {self.agent} {self.seconds:.1f} s, {self.packets} packets"


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
        kind = chance.choice(KINDS)
        longest_s = 60.0 if kind == "freeze" else 40.0
        return Fault(
            at=chance.randint(1, packets),
            kind=kind,
            agent=chance.choice(agents),
            seconds=chance.uniform(0.0, longest_s) * chance.random(),
            packets=int(chance.uniform(0.0, MOST_PACKETS[kind]) * chance.random())
            if kind in MOST_PACKETS
            else 0,
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
        self._later += [
            (fleet.now + seconds, functools.partial(fleet.mend, name)) for name, seconds in fleet.torn
        ]
        fleet.torn.clear()
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
                fleet.doom(fault.agent, fault.packets)
            case "freeze":
                fleet.freeze(fault.agent, fault.seconds)
            case "cut":
                fleet.cut(fault.agent)
                self._later.append((fleet.now + fault.seconds, functools.partial(fleet.mend, fault.agent)))
            case "tear":
                fleet.tear(fault.agent, fault.packets, fault.seconds)
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
        delay_s=chance.choice((0.3, 1.0, 1.0, 4.0)) * chance.random(),
    )
