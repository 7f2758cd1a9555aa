"""What a device does with a session when it holds the whole model: federated learning. No I/O.

Each device trains by itself and brings its LoRA parameters, which the cloud averages (FedAvg, McMahan et al.
2017, arXiv 1602.05629). No edge takes part, and the cloud says nothing but assignments and versions, which are
retained: so what was brought and may have been lost is said again until another assignment comes.
"""

from iotsplit.errors import DivergedError
from iotsplit.messages import Score, Stuck
from iotsplit.plan import Tier
from iotsplit.role import Output
from iotsplit.session import Turns
from iotsplit.settings import TrainingSettings
from iotsplit.states import Assignment
from iotsplit_device.evaluation import Evaluation
from iotsplit_device.sessions import Asking
from iotsplit_device.training import Training
from iotsplit_device.work import DeviceWork

FIRST_PAUSE_S = 30.0
LONGEST_PAUSE_S = 480.0


class Bringing(Asking):
    """What waits for no answers, and says again after ever longer pauses what it has brought to the cloud."""

    _pause_s = FIRST_PAUSE_S
    _due = float("inf")

    @property
    def next_due(self) -> float:
        """When it is said again, in the runner's seconds."""
        return self._due

    def ask(self, now: float) -> list[Output]:
        """Say again what may have been lost; the time counts from the first call."""
        if now < self._due:
            return []
        is_first, self._due = self._due == float("-inf"), now + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        return [] if is_first else list(self.backup.since(Tier.CLOUD, 0))

    def hurry(self, now: float) -> None:
        """Say it soon: it may have been lost with a connection, or with what the cloud was before."""
        self._due = min(self._due, now) if self._due < float("inf") else self._due

    def reassign(self, assignment: Assignment, now: float) -> list[Output]:
        """Go on under another epoch, and say under it what was brought."""
        said = super().reassign(assignment, now)
        self.hurry(now)
        return said

    def bring(self, content: Score | Stuck, step: int = 0) -> list[Output]:
        """Say something to the cloud from now on."""
        self._due = float("-inf")
        return [self.backup.keep(content, Tier.CLOUD, (step, 0))]


class WholeTraining(Bringing, Training):
    """Local steps of one round on the device alone."""

    def work(self, now: float) -> list[Output]:
        """Train on the next micro-batch, and step behind the last."""
        del now
        try:
            self._loss_sum += self._work.train(self._batches[self._sent], step_tokens=self._step_tokens)
            self._sent += 1
            self._closed = self._sent
            return self._backward()
        except DivergedError as error:
            self._batches = []
            return self.bring(Stuck(reason=str(error), unfit=True), self._step)

    def _finish(self) -> list[Output]:
        self._due = float("-inf")
        return super()._finish()

    def _say_where(self) -> list[Output]:
        return []  # nobody works with us


class WholeEvaluation(Bringing, Evaluation):
    """Held-out data of the device, scored on the device; the cloud gets the sums."""

    def __init__(
        self, assignment: Assignment, settings: TrainingSettings, work: DeviceWork, turns: Turns
    ) -> None:
        super().__init__(assignment, settings, work, turns)
        self._sums = Score(loss_sum=0.0, tokens=0, exact=0, sequences=0)

    def work(self, now: float) -> list[Output]:
        """Score the next micro-batch."""
        del now
        try:
            self._sums = _sum(self._sums, self._work.score_whole(self._batches[self._sent]))
        except DivergedError as error:
            self._sent = len(self._batches)
            return self.bring(Stuck(reason=str(error), unfit=True))
        self._sent += 1
        return self.bring(self._sums) if self._sent == len(self._batches) else []


def _sum(one: Score, other: Score) -> Score:
    return Score(
        loss_sum=one.loss_sum + other.loss_sum,
        tokens=one.tokens + other.tokens,
        exact=one.exact + other.exact,
        sequences=one.sequences + other.sequences,
    )
