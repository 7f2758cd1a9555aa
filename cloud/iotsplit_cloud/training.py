"""What all rounds of training have in common: sessions that come to their end, or leave. No I/O."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from iotsplit.messages import Frame, Update
from iotsplit.plan import Tier
from iotsplit.role import Output
from iotsplit.session import Turns
from iotsplit.settings import TrainingSettings
from iotsplit.states import Assignment, Metrics
from iotsplit_cloud.caches import Caches
from iotsplit_cloud.journal import RoundCheckpoint
from iotsplit_cloud.ledger import Ledger
from iotsplit_cloud.sessions import Check, CloudSession, new_sessions
from iotsplit_cloud.tail import Tail

UPDATE_OF = {Tier.DEVICE: 0, Tier.EDGE: 1}
"""Both tiers' updates of a session end its last step; the micro-batch tells them apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Equipment:
    """What a round works with.

    Args:
        tail: the cloud's part.
        ledger: entered at each step.
        turns: numbers the cloud's Resume messages.
        check: decodes an update; raises a PeerError for one that cannot be averaged.
        caches: what is remembered of samples.
        to_start: puts the tail back to where it was when the round began.
    """

    tail: Tail
    ledger: Ledger
    turns: Turns
    check: Check
    caches: Caches
    to_start: Callable[[], None]


class TrainingRound(ABC):
    """Sessions of one round, from their assignments to what they bring.

    Attributes:
        sessions: those that are in, by device.
        updates: what they have brought, by device.
        dropped: why others have left.
        step: that all sessions have come to.
        stuck: why the round cannot go on from what is left and has to be done again; empty if it can.
        can_carry: whether what a session has done counts when it is too late for the round.

    Args:
        assignments: the round's sessions by device.
        settings: the fleet's settings.
        equipment: the tail and what belongs to it.
    """

    can_carry = False

    def __init__(
        self,
        assignments: dict[str, Assignment],
        settings: TrainingSettings,
        equipment: Equipment,
        *,
        now: float,
    ) -> None:
        self.sessions = new_sessions(assignments, settings, now)
        self.updates: dict[str, dict[Tier, Update]] = {device: {} for device in self.sessions}
        self.dropped: dict[str, str] = {}
        self.step = 0
        self.stuck = ""
        self._settings = settings
        self._tail, self._ledger, self._check = equipment.tail, equipment.ledger, equipment.check
        self._late = set(self.sessions)  # who has not brought all of this step; after the last one, its updates
        self._ledger.expected += len(self.sessions) * settings.local_steps

    @property
    def done(self) -> bool:
        """Every session that is still in has brought all its updates."""
        return not self._late and (self.step == self._settings.local_steps or not self.sessions)

    def waits_for(self) -> list[str]:
        """Devices whose session holds the others up."""
        return sorted(self._late)

    @abstractmethod
    def handle(self, frame: Frame, now: float) -> list[Output]:
        """Take a frame of one of the round's sessions."""

    @abstractmethod
    def hear(self, metrics: Metrics, now: float) -> None:
        """Take what a device tells of its work."""

    @abstractmethod
    def tick(self, now: float) -> list[Output]:
        """Do what time asks for."""

    @abstractmethod
    def resume(self, saved: Sequence[RoundCheckpoint], now: float) -> list[Output]:
        """Go on after a restart of the cloud, from the newest of what it has saved of the round."""

    def move(self, assignment: Assignment, now: float) -> None:
        """A session goes on at another edge, which will say from where."""
        self.sessions[assignment.device].move_to(assignment, self.step, now)

    def drop(self, device: str, reason: str, now: float) -> list[Output]:
        """Forget a session and what it brought for the step at hand."""
        del now
        session = self.sessions.pop(device)
        self.updates.pop(device)
        self.dropped[device] = reason
        self._late.discard(device)
        done = self._ledger.steps(session.assignment.session)
        self._ledger.expected -= self._settings.local_steps - done
        return []

    def void(self) -> None:
        """Take the round out of the ledger: it is done again from its start."""
        for session in self.sessions.values():
            self._ledger.rewind(session.assignment.session, 0)
            self._ledger.expected -= self._settings.local_steps
        self._tail.forget()

    def _session_of(self, frame: Frame) -> CloudSession | None:
        """Whose frame it is, if it is of now."""
        session = self.sessions.get(frame.device)
        if session is None or not session.belongs(frame):
            return None
        session.backup.hear(frame)
        return session

    def _arrived(self, session: CloudSession, frame: Frame, now: float) -> None:
        session.awaited.arrived(frame.identity, now)
        session.progress(now)
        if not session.awaited:
            self._late.discard(frame.device)
