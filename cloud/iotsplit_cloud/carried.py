"""Sessions that were too late for their round: they end where they stand, and count in the next one. No I/O."""

from collections.abc import Mapping

from iotsplit.errors import PeerError
from iotsplit.messages import Frame, Resume, Stuck, Update, Want
from iotsplit.plan import Tier
from iotsplit.role import Output
from iotsplit.settings import TrainingSettings
from iotsplit.states import Assignment
from iotsplit_cloud.caches import Caches
from iotsplit_cloud.journal import CarriedSession
from iotsplit_cloud.sessions import Check, CloudSession, new_session
from iotsplit_cloud.training import UPDATE_OF
from iotsplit_cloud.versions import Library


class Carried:
    """Waits for the updates of carried sessions; nobody waits for them in turn.

    The cloud has applied `ends_at` steps of each and no more. Device and edge stand there too, or get there
    from what was kept for them, and then bring their LoRA parameters.

    Args:
        settings: the fleet's.
        check: decodes an update; raises a PeerError for one that cannot be averaged.
        caches: what is remembered of samples.
    """

    def __init__(self, settings: TrainingSettings, check: Check, caches: Caches) -> None:
        self.sessions: dict[str, CloudSession] = {}
        self._updates: dict[str, dict[Tier, Update]] = {}
        self._settings = settings
        self._check = check
        self._caches = caches

    def take(self, session: CloudSession, assignment: Assignment, now: float) -> None:
        """Take over a session that has left its round."""
        session.backup.reassign(assignment)
        session.awaited.forget_from(0)
        for micro_batch in UPDATE_OF.values():
            session.expect("update", assignment.steps, micro_batch, now)
        self.sessions[assignment.device], self._updates[assignment.device] = session, {}

    def take_up(self, earlier: Mapping[str, CarriedSession], now: float) -> list[Output]:
        """Go on waiting after a restart of the cloud."""
        for carried in earlier.values():
            session = new_session(carried.assignment, self._settings, now)
            session.tokens = carried.tokens
            session.backup.restart(carried.assignment.steps, newest=carried.assignment.steps)
            self.take(session, carried.assignment, now)
        return [carried.assignment for carried in earlier.values()]

    def record(self) -> dict[str, CarriedSession]:
        """What a restarted cloud has to know of them."""
        return {
            device: CarriedSession(assignment=session.assignment, tokens=session.tokens)
            for device, session in self.sessions.items()
        }

    def waits_for(self) -> list[str]:
        """Nobody holds anybody up."""
        return []

    def handle(self, frame: Frame, now: float) -> list[Output]:
        """Take an update, or a request of an edge that has come back.

        Raises:
            PeerError: an update that cannot be averaged.
        """
        session = self.sessions[frame.device]
        if not session.belongs(frame):
            return []
        match frame.content:
            case Want(samples=samples) as want if samples:
                return [session.send(self._caches.rows(frame.device, want), frame)]
            case Want() as want:
                return list(session.again(frame, want))
            case Resume() as resume if session.backup.is_news(frame, resume):
                return list(session.backup.since(Tier.EDGE, resume.step))
            case Stuck() as stuck:
                session.unfit = stuck.reason
            case Update() as update if frame.identity in session.awaited:
                self._keep(session, frame, update, now)
        return []

    def _keep(self, session: CloudSession, frame: Frame, update: Update, now: float) -> None:
        try:
            decoded = session.check(frame.tier, update, self._check)
        except PeerError as error:
            if session.awaited.is_hopeless(frame.identity, error):
                session.unfit = str(error)
            raise
        self._updates[frame.device][frame.tier] = decoded
        session.awaited.arrived(frame.identity, now)
        session.progress(now)

    def tick(self, now: float) -> list[Output]:
        """Ask for what is late."""
        return [want for session in self.sessions.values() for want in session.ask(now)]

    def move(self, assignment: Assignment, now: float) -> None:
        """A session goes on at another edge."""
        self.sessions[assignment.device].move_to(assignment, assignment.steps, now)

    def drop(self, device: str, reason: str, now: float) -> list[Output]:
        """Give a session up."""
        del reason, now
        del self.sessions[device], self._updates[device]
        return []

    def arrived(self, library: Library) -> dict[str, dict[Tier, Update]]:
        """Hand over what sessions have brought that are whole: their changes, made to the current version."""
        updates = {}
        for device in [each for each, brought in self._updates.items() if len(brought) == len(UPDATE_OF)]:
            since = self.sessions.pop(device).assignment.version
            updates[device] = {
                tier: library.rebased(tier, each, since=since)
                for tier, each in self._updates.pop(device).items()
            }
        return updates

    def of_rounds_before(self, round_: int) -> list[str]:
        """Devices whose session is of an earlier round."""
        return [device for device, session in self.sessions.items() if session.assignment.round < round_]
