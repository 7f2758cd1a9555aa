"""Held-out data of a device, scored in a session with an edge. No I/O."""

from collections.abc import Sequence

from iotsplit.errors import DivergedError, MalformedMessageError
from iotsplit.messages import Activation, Frame, Identity, Score, Stuck, TailHidden, Want
from iotsplit.plan import Labels, Tier
from iotsplit.role import Output
from iotsplit.session import Awaited, Turns, wanted_by
from iotsplit.settings import TrainingSettings
from iotsplit.states import Assignment
from iotsplit_device.records import Checkpoint
from iotsplit_device.sessions import Asking
from iotsplit_device.work import DeviceWork

EVALUATION_WINDOW = 2
"""Held-out micro-batches on their way at once: enough that no tier idles, little to keep."""


class Evaluation(Asking):
    """Held-out data of the device, scored with one adapter version; each micro-batch is a step."""

    def __init__(
        self, assignment: Assignment, settings: TrainingSettings, work: DeviceWork, turns: Turns
    ) -> None:
        del turns
        super().__init__(assignment, settings)
        self._at_cloud = settings.labels is Labels.CLOUD
        self._work = work
        self._batches = work.batches.evaluation()
        self._sent = 0
        self._problem = ""

    @property
    def busy(self) -> bool:
        """Held-out data is left, and not too much of it is on its way."""
        return self._sent < len(self._batches) and len(self.awaited) < EVALUATION_WINDOW

    def begin(self, saved: Sequence[Checkpoint]) -> list[Output]:
        """Start; scores need no state."""
        del saved
        return []

    def reassign(self, assignment: Assignment, now: float) -> list[Output]:
        """Go on at another edge, which knows nothing of what is under way."""
        self.hurry(now)
        return super().reassign(assignment, now)

    def work(self, now: float) -> list[Output]:
        """Send the next micro-batch up."""
        at = (self._sent, 0)
        try:
            content: Activation = self._work.infer(self._batches[self._sent], steps=len(self._batches))
        except DivergedError as error:
            return self._give_up(str(error))
        self._sent += 1
        kind = "score" if self._at_cloud else "tail_hidden"
        self.awaited.expect(Identity(self.backup.assignment.session, *at, kind), now)
        return [self.backup.keep(content, Tier.EDGE, at)]

    def answer(self, frame: Frame, now: float) -> list[Output]:
        """Take a request for what was sent."""
        del now
        if self._problem:
            return self._give_up(self._problem)
        if not isinstance(frame.content, Want):
            return []
        again = self.backup.again(wanted_by(frame, frame.content))
        return [] if again is None else [again]

    def handle(self, frame: Frame, now: float) -> list[Output]:
        """Take a score, or the last layer's output to be scored here."""
        del now
        match frame.content:
            case TailHidden() as content:
                score = self._work.score(content, self._batches[frame.step])
                return [self.backup.keep(score, Tier.EDGE, (frame.step, 0))]
            case Score():
                self.backup.trim(Tier.EDGE, min(self._waiting_steps(), default=frame.step))
                return []
        raise MalformedMessageError(f"a {frame.identity.kind} in an evaluation")

    def _give_up(self, problem: str) -> list[Output]:
        """Leave the evaluation: other data would fare no better."""
        self._problem = problem
        self._sent = len(self._batches)
        self.awaited = Awaited()
        return [self.backup.send(Stuck(reason=problem, unfit=True), Tier.EDGE, (self._sent, 0))]

    def _waiting_steps(self) -> list[int]:
        return [identity.step for identity in self.awaited.identities]
