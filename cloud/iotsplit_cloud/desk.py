"""What every agent is told to do now: its newest assignment, and the epoch that outranks the last. Pure."""

from collections.abc import Callable, Container, Mapping
from types import MappingProxyType

import msgspec

from iotsplit.settings import TrainingSettings
from iotsplit.states import Assignment
from iotsplit_cloud.members import Members
from iotsplit_cloud.versions import Library

AGAIN = "r"
"""Stands between the number of a round and that of the attempt."""

NOTHING: Mapping[str, str] = MappingProxyType({})


class Desk:
    """Writes assignments; the only place that counts epochs.

    Args:
        cloud: id of the cloud.
        run: a word that is new with each start, so that sessions of two starts are never the same.
        first_epoch: epochs begin above what it gives when one is needed. A broker may deliver again what an
            agent has left behind; a restarted cloud must outrank its past.
        settings: the fleet's.
        members: who is there.
    """

    def __init__(
        self,
        *,
        cloud: str,
        run: str,
        first_epoch: Callable[[], int],
        settings: TrainingSettings,
        members: Members,
    ) -> None:
        self._cloud, self._run, self._settings = cloud, run, settings
        self._first_epoch = first_epoch
        self._members = members
        self._epochs: dict[str, int] = {}  # of each agent's newest assignment
        self._assigned: dict[str, Assignment] = {}

    def __contains__(self, agent: str) -> bool:
        return agent in self._assigned

    def assign(
        self,
        pairs: Mapping[str, str],
        task: str,
        round_: str,
        library: Library,
        *,
        bases: Mapping[str, str] = NOTHING,
    ) -> dict[str, Assignment]:
        """New sessions for pairs of device and edge, from the current adapter version.

        Args:
            pairs: the edge of each device.
            task: ``train`` or ``evaluate``.
            round_: number of the round, and of the attempt if it is done again.
            library: holds the version.
            bases: the session that each one goes on from in what it remembers of samples.
        """
        return {
            device: Assignment(
                device=device,
                task=task,
                session=f"{self._run}-{task[0]}{round_}-{device}",
                epoch=self._next_epoch(device),
                round=int(round_.partition(AGAIN)[0]),
                edge=edge,
                incarnation=self._members.incarnation(edge),
                cloud=self._cloud,
                version=library.current.version,
                adapter=library.digest,
                cache=bases.get(device, ""),
                settings=self._settings,
            )
            for device, edge in pairs.items()
        }

    def move(
        self, assignment: Assignment, edge: str, *, checkpoint: int, ends_at: int | None = None
    ) -> Assignment:
        """The same session at another edge, or at the same one after its restart or for an early end.

        Args:
            assignment: as it was.
            edge: that takes over.
            checkpoint: newest step of which the edge is known to have saved its state.
            ends_at: after how many steps the session ends, if that is earlier than it was to be.
        """
        moved = msgspec.structs.replace(
            assignment,
            epoch=self._next_epoch(assignment.device),
            edge=edge,
            incarnation=self._members.incarnation(edge),
            checkpoint=checkpoint,
            ends_at=ends_at or assignment.ends_at,
        )
        self._assigned[assignment.device] = moved
        return moved

    def adopt(self, assignments: Mapping[str, Assignment]) -> None:
        """Go on with assignments of an earlier start."""
        self._assigned.update(assignments)

    def all(self) -> list[Assignment]:
        """Everybody's newest assignment."""
        return list(self._assigned.values())

    def hand_out(self, assignments: Mapping[str, Assignment], *, spared: Container[str]) -> list[Assignment]:
        """What is to be said: rest for those who are busy with something else, then the new assignments.

        Args:
            assignments: by device.
            spared: devices that go on with what they do.
        """
        busy = [
            device for device, held in self._assigned.items() if held.task != "idle" and device not in spared
        ]
        idle = [self.rest(device) for device in busy if device not in assignments]
        self._assigned.update(assignments)
        return [*idle, *assignments.values()]

    def rest(self, agent: str, *, problem: str = "") -> Assignment:
        """Nothing to do, or why the agent is refused."""
        rest = Assignment(device=agent, task="idle", epoch=self._next_epoch(agent), problem=problem)
        self._assigned[agent] = rest
        return rest

    def _next_epoch(self, agent: str) -> int:
        self._epochs[agent] = self._epochs.get(agent, self._first_epoch()) + 1
        return self._epochs[agent]
