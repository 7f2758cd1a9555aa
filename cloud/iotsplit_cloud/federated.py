"""Rounds and evaluations of devices that each hold the whole model: the cloud only averages. No I/O.

Federated averaging (McMahan et al. 2017, arXiv 1602.05629) of LoRA parameters. What a device brings, it says
again until it has another assignment, so nothing is asked for.
"""

from collections import Counter
from collections.abc import Sequence

from iotsplit.errors import MalformedMessageError, PeerError, TensorRefusedError
from iotsplit.messages import Frame, Score, Stuck, Update
from iotsplit.plan import Tier
from iotsplit.role import Output
from iotsplit.settings import TrainingSettings
from iotsplit.states import Assignment, Metrics
from iotsplit_cloud.evaluation import EvaluationRound
from iotsplit_cloud.journal import RoundCheckpoint
from iotsplit_cloud.sessions import CloudSession
from iotsplit_cloud.tail import Tail
from iotsplit_cloud.training import Equipment, TrainingRound

MOST_REFUSED = 2
"""Garbage comes once; an update that is still not acceptable when it is said again never will be."""


class FederatedRound(TrainingRound):
    """Waits for each device's update.

    Args:
        assignments: the round's sessions by device.
        settings: the fleet's settings.
        equipment: the tail, which is empty, and what belongs to it.
    """

    def __init__(
        self,
        assignments: dict[str, Assignment],
        settings: TrainingSettings,
        equipment: Equipment,
        *,
        now: float,
    ) -> None:
        super().__init__(assignments, settings, equipment, now=now)
        self.step = settings.local_steps
        self._refused = Counter[str]()  # updates of each device
        self._losses: dict[str, dict[int, float]] = {device: {} for device in self.sessions}
        for session in self.sessions.values():
            session.expect("update", self.step, 0, now)

    def handle(self, frame: Frame, now: float) -> list[Output]:
        """Take a frame of one of the round's sessions."""
        session = self._session_of(frame)
        if session is None:
            return []
        if isinstance(frame.content, Stuck):
            session.unfit = frame.content.reason
        elif frame.identity in session.awaited and not session.unfit:
            self._take(session, frame, now)
        return []

    def hear(self, metrics: Metrics, now: float) -> None:
        """Note what a device tells of its steps: losses for the report, and that it gets on."""
        session = self.sessions.get(metrics.agent)
        if session is None or metrics.session != session.assignment.session or metrics.loss is None:
            return
        if metrics.step is not None and 0 <= metrics.step < self._settings.local_steps:
            losses = self._losses[metrics.agent]
            losses[metrics.step] = metrics.loss
            session.losses = [losses[step] for step in sorted(losses)]
            session.progress(now)

    def tick(self, now: float) -> list[Output]:
        """Nothing is asked for."""
        del now
        return []

    def resume(self, saved: Sequence[RoundCheckpoint], now: float) -> list[Output]:
        """Wait for the updates anew: devices say them again when they hear of the new epoch."""
        del saved, now
        return []

    def _take(self, session: CloudSession, frame: Frame, now: float) -> None:
        if not isinstance(frame.content, Update) or frame.tier is not Tier.DEVICE:
            raise MalformedMessageError(f"a {frame.identity.kind} in a round of whole models")
        try:
            self._check_tokens(frame.content)
            decoded = self._check(Tier.DEVICE, frame.content, session.assignment)
        except PeerError as error:
            self._refused[frame.device] += 1
            if self._refused[frame.device] >= MOST_REFUSED:
                session.unfit = str(error)
            raise
        session.tokens = frame.content.tokens
        self.updates[frame.device][Tier.DEVICE] = decoded
        for step in range(self._settings.local_steps):
            self._ledger.apply(session.assignment.session, step)
        self._arrived(session, frame, now)

    def _check_tokens(self, update: Update) -> None:
        """Nobody has counted them here, and they are its weight: not more than its steps can have."""
        s = self._settings
        most = s.local_steps * s.batch_size * s.sequence_length
        if update.tokens > most:
            raise TensorRefusedError(f"an update for {update.tokens} tokens, at most {most} are trained on")


class FederatedEvaluation(EvaluationRound):
    """Waits for each device's sums."""

    def __init__(
        self, assignments: dict[str, Assignment], settings: TrainingSettings, tail: Tail, *, now: float
    ) -> None:
        super().__init__(assignments, settings, tail, now=now)
        for session in self.sessions.values():
            session.awaited.forget_from(0)
            session.expect("score", 0, 0, now)

    def tick(self, now: float) -> list[Output]:
        """Nothing is asked for."""
        del now
        return []

    def _take(self, session: CloudSession, frame: Frame, now: float) -> list[Output]:
        del now
        if not isinstance(frame.content, Score) or frame.tier is not Tier.DEVICE:
            raise MalformedMessageError(f"a {frame.identity.kind} in an evaluation of whole models")
        self._scores[session.assignment.device][0] = frame.content
        return []
