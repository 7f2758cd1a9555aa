"""What every agent is told to do now: its newest assignment, and the epoch that outranks the last. Pure."""

from collections.abc import Mapping

from iotsplit.messages import Assignment
from iotsplit.settings import TrainingSettings
from iotsplit_cloud.versions import Library


class Desk:
    """Writes assignments; the only place that counts epochs.

    Args:
        cloud: id of the cloud.
        run: a word that is new with each start, so that sessions of two starts are never the same.
        first_epoch: epochs begin above it. A broker may deliver again what an agent has left behind; a
            restarted cloud must outrank its past.
        settings: the fleet's.
    """

    def __init__(self, *, cloud: str, run: str, first_epoch: int, settings: TrainingSettings) -> None:
        self._cloud, self._run, self._settings = cloud, run, settings
        self._first_epoch = first_epoch
        self._epochs: dict[str, int] = {}  # of each agent's newest assignment
        self._assigned: dict[str, Assignment] = {}

    def __contains__(self, agent: str) -> bool:
        return agent in self._assigned

    def assign(
        self, pairs: Mapping[str, str], task: str, round_: int, library: Library
    ) -> dict[str, Assignment]:
        """New sessions for pairs of device and edge, from the current adapter version."""
        return {
            device: Assignment(
                device=device,
                task=task,
                session=f"{self._run}-{task[0]}{round_}-{device}",
                epoch=self._next_epoch(device),
                round=round_,
                edge=edge,
                cloud=self._cloud,
                version=library.current.version,
                adapter=library.digest,
                settings=self._settings,
            )
            for device, edge in pairs.items()
        }

    def hand_out(self, assignments: Mapping[str, Assignment]) -> list[Assignment]:
        """What is to be said: rest for those who are busy with something else, then the new assignments."""
        busy = [device for device, held in self._assigned.items() if held.task != "idle"]
        idle = [self.rest(device) for device in busy if device not in assignments]
        self._assigned.update(assignments)
        return [*idle, *assignments.values()]

    def rest(self, agent: str, *, problem: str = "") -> Assignment:
        """Nothing to do, or why the agent is refused."""
        rest = Assignment(device=agent, task="idle", epoch=self._next_epoch(agent), problem=problem)
        self._assigned[agent] = rest
        return rest

    def _next_epoch(self, agent: str) -> int:
        self._epochs[agent] = self._epochs.get(agent, self._first_epoch) + 1
        return self._epochs[agent]
