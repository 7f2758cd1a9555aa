"""Held-out data of every device, scored with one adapter version. No I/O."""

import math

import msgspec

from iotsplit.errors import MalformedMessageError, PeerError, RunFailedError, TensorRefusedError
from iotsplit.messages import (
    Activation,
    Frame,
    Score,
    Stuck,
    Want,
)
from iotsplit.plan import Labels, Tier
from iotsplit.role import Output
from iotsplit.settings import TrainingSettings
from iotsplit.states import Assignment
from iotsplit_cloud.sessions import CloudSession, new_sessions
from iotsplit_cloud.tail import Tail

MAX_STEPS = 100_000


class Tally(msgspec.Struct, kw_only=True):
    """Sums of scores, and what they come to."""

    loss_sum: float = 0.0
    tokens: int = 0
    exact: int = 0
    sequences: int = 0

    def add(self, other: "Score | Tally") -> None:
        """Add another's sums."""
        self.loss_sum += other.loss_sum
        self.tokens += other.tokens
        self.exact += other.exact
        self.sequences += other.sequences

    def summary(self, *, completions: bool) -> dict[str, float | int]:
        """Loss, perplexity and, where there are completions, exact match as the report has them."""
        loss = self.loss_sum / max(1, self.tokens)
        row = {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "sequences": self.sequences,
            "tokens": self.tokens,
        }
        if completions:
            row |= {"exact": self.exact, "exact_match": self.exact / max(1, self.sequences)}
        return row


class EvaluationRound:
    """Sessions without a barrier: each is scored as it comes; the sums are the same in any order."""

    def __init__(
        self,
        assignments: dict[str, Assignment],
        settings: TrainingSettings,
        tail: Tail,
        *,
        now: float,
    ) -> None:
        self.sessions = new_sessions(assignments, settings, now)
        self.dropped: dict[str, str] = {}
        self.unfit: dict[str, str] = {}
        """Those of the dropped whose numbers were not acceptable."""
        self._settings = settings
        self._tail = tail
        self._steps: dict[str, int] = {}  # steps of each session, once it has said so
        self._scores: dict[str, dict[int, Score]] = {device: {} for device in self.sessions}
        self._late = set(self.sessions)  # whose scores are not all in
        for session in self.sessions.values():
            session.expect("activation", 0, 0, now)

    @property
    def done(self) -> bool:
        """All held-out data of every session that is still in is scored."""
        return not self._late

    def check_fitness(self, version: int) -> None:
        """See that at least one device could score a version.

        Raises:
            RunFailedError: its numbers were not acceptable to any.
        """
        if self.unfit and self.unfit.keys() == self.dropped.keys():
            raise RunFailedError(
                f"version {version} gives no usable numbers on any device ({next(iter(self.unfit.values()))})",
                fix="start over with a lower learning_rate or aggregation trimmed; or raise norm_bound",
            )

    def waits_for(self) -> list[str]:
        """Devices whose scores are not all in."""
        return sorted(self._late)

    def tallies(self) -> dict[str, Tally]:
        """Sums by device, added up in the order of steps."""
        sums = {device: Tally() for device in self.sessions}
        for device, tally in sums.items():
            for step in sorted(self._scores[device]):
                tally.add(self._scores[device][step])
        return sums

    def handle(self, frame: Frame, now: float) -> list[Output]:
        """Take a frame of one of the sessions."""
        session = self.sessions.get(frame.device)
        if session is None or not session.belongs(frame):
            return []
        if isinstance(frame.content, Want):
            return list(session.again(frame, frame.content))
        if isinstance(frame.content, Stuck) and frame.content.unfit:
            session.unfit = frame.content.reason
            return []
        if frame.identity not in session.awaited:
            return self._repeated(session, frame)
        try:
            said = self._take(session, frame, now)
        except PeerError as error:
            if session.awaited.is_hopeless(frame.identity, error):
                session.unfit = str(error)
            raise
        session.awaited.arrived(frame.identity, now)
        session.progress(now)
        if not session.awaited:
            self._late.discard(frame.device)
        return said

    def _repeated(self, session: CloudSession, frame: Frame) -> list[Output]:
        """The answer once more: a device that has started again goes through all its data."""
        if not isinstance(frame.content, Activation):
            return []
        kind = "tail_hidden" if self._settings.labels is Labels.DEVICE else "score"
        kept = session.backup.again(session.identity(kind, frame.step, 0))
        return [] if kept is None else [kept]

    def tick(self, now: float) -> list[Output]:
        """Ask for what is late."""
        return [want for session in self.sessions.values() for want in session.ask(now)]

    def move(self, assignment: Assignment, now: float) -> None:
        """A session goes on at another edge, which knows nothing of what is under way."""
        session = self.sessions[assignment.device]
        session.move_to(assignment, 0, now)
        session.awaited.hurry(now)

    def drop(self, device: str, reason: str, now: float) -> list[Output]:
        """Go on without a session."""
        del now
        session = self.sessions.pop(device)
        self._late.discard(device)
        self.dropped[device] = reason
        if session.unfit:
            self.unfit[device] = session.unfit
        return []

    def _take(self, session: CloudSession, frame: Frame, now: float) -> list[Output]:
        scores = self._scores[frame.device]
        at_device = self._settings.labels is Labels.DEVICE
        match frame.content:
            case Activation() as content if frame.tier is Tier.EDGE:
                answer = self._tail.infer(content) if at_device else self._tail.score(content)
                self._count_steps(session, content, now)
                if isinstance(answer, Score):
                    scores[frame.step] = answer
                else:
                    session.expect("score", frame.step, 0, now)
                return [session.answer(frame, answer)]
            case Score() as score if at_device:
                scores[frame.step] = score
                return []
        raise MalformedMessageError(f"a {frame.identity.kind} in an evaluation")

    def _count_steps(self, session: CloudSession, content: Activation, now: float) -> None:
        if session.assignment.device in self._steps:
            return
        if not 0 < content.steps <= MAX_STEPS:
            raise TensorRefusedError(f"an evaluation of {content.steps} steps")
        self._steps[session.assignment.device] = content.steps
        for step in range(1, content.steps):
            session.expect("activation", step, 0, now)
