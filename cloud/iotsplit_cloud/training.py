"""A training round in the cloud: lockstep over its sessions, and a ledger of what was applied. No I/O."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from iotsplit.errors import MalformedMessageError, TensorRefusedError
from iotsplit.messages import (
    Activation,
    Assignment,
    Frame,
    Metrics,
    TailGradient,
    Update,
    Want,
)
from iotsplit.plan import Labels, Tier
from iotsplit.role import Output
from iotsplit.settings import TrainingSettings
from iotsplit_cloud.sessions import CloudSession
from iotsplit_cloud.tail import Key, Tail

UPDATE_OF = {Tier.DEVICE: 0, Tier.EDGE: 1}
"""Both tiers' updates of a session end its last step; the micro-batch tells them apart."""


@dataclass(slots=True)
class Ledger:
    """Which steps of which sessions count, and which were applied to the cloud's parameters."""

    expected: int = 0
    applied: set[tuple[str, int]] = field(default_factory=set)
    duplicated: int = 0

    def apply(self, session: str, step: int) -> None:
        """Enter one session's step."""
        self.duplicated += (session, step) in self.applied
        self.applied.add((session, step))

    @property
    def lost(self) -> int:
        """Steps that should have been applied and were not."""
        return self.expected - len(self.applied)


class TrainingRound:
    """Treats each micro-batch as it comes; steps when all sessions of the step are in.

    Args:
        assignments: the round's sessions by device.
        settings: the fleet's settings.
        tail: the cloud's part.
        ledger: entered at each step.
        check: raises a PeerError for an update that cannot be averaged.
    """

    def __init__(
        self,
        assignments: Mapping[str, Assignment],
        settings: TrainingSettings,
        tail: Tail,
        ledger: Ledger,
        *,
        check: Callable[[Tier, Update], None],
        now: float,
    ) -> None:
        self.sessions = {
            device: CloudSession(assignment=assignment, progress_at=now)
            for device, assignment in sorted(assignments.items())
        }
        self.updates: dict[str, dict[Tier, Update]] = {device: {} for device in self.sessions}
        self.dropped: dict[str, str] = {}
        self.step = 0
        self._settings = settings
        self._tail = tail
        self._ledger = ledger
        self._check = check
        self._next: dict[str, int] = dict.fromkeys(self.sessions, 0)  # micro-batches done in this step
        self._held: dict[str, list[Frame]] = {device: [] for device in self.sessions}
        ledger.expected += len(self.sessions) * settings.local_steps
        for session in self.sessions.values():
            self._expect_step(session, now)

    @property
    def done(self) -> bool:
        """Every session that is still in has brought both its updates."""
        return all(len(brought) == len(UPDATE_OF) for brought in self.updates.values())

    def waits_for(self) -> list[str]:
        """Devices whose session holds the others up."""
        if self.step < self._settings.local_steps:
            return [device for device, done in self._next.items() if done < self._settings.micro_batches]
        return [device for device, brought in self.updates.items() if len(brought) < len(UPDATE_OF)]

    def handle(self, frame: Frame, now: float) -> list[Output]:
        """Take a frame of one of the round's sessions."""
        session = self.sessions.get(frame.device)
        if session is None or not session.belongs(frame):
            return []
        if isinstance(frame.content, Want):
            return list(session.again(frame, frame.content))
        if frame.identity not in session.awaited:
            return self._hold(frame)
        said = self._take(session, frame, now)
        return [*said, *self._barrier(now)]

    def tick(self, now: float) -> list[Output]:
        """Ask for what is late."""
        return [want for session in self.sessions.values() for want in session.ask(now)]

    @property
    def next_due(self) -> float:
        """When something will be late."""
        return min((s.awaited.next_due for s in self.sessions.values()), default=float("inf"))

    def drop(self, device: str, reason: str, now: float) -> list[Output]:
        """Go on without a session; what it brought for the step at hand is forgotten."""
        session = self.sessions.pop(device)
        self.dropped[device] = reason
        self._tail.drop(session.assignment.session)
        done = sum(name == session.assignment.session for name, _ in self._ledger.applied)
        self._ledger.expected -= self._settings.local_steps - done
        for table in (self._next, self._held, self.updates):
            table.pop(device)
        return self._barrier(now)

    def _hold(self, frame: Frame) -> list[Output]:
        # A session that is ahead waits here for the others; anything else is a repetition.
        held = self._held[frame.device]
        match frame.content:
            case Activation():
                possible = frame.micro_batch < self._settings.micro_batches
            case Update():
                possible = UPDATE_OF.get(frame.tier) == frame.micro_batch
            case _:
                possible = False
        if (
            possible
            and frame.step == self.step + 1
            and frame.identity not in {other.identity for other in held}
        ):
            held.append(frame)
        return []

    def _take(self, session: CloudSession, frame: Frame, now: float) -> list[Output]:
        match frame.content:
            case Update() as update if UPDATE_OF.get(frame.tier) == frame.micro_batch:
                if update.tokens != session.tokens:
                    raise TensorRefusedError(f"an update for {update.tokens} tokens, not {session.tokens}")
                self._check(frame.tier, update)
                self.updates[frame.device][frame.tier] = update
                self._arrived(session, frame, now)
                return []
            case Activation() | TailGradient() if frame.tier is Tier.EDGE:
                return self._take_tensor(session, frame, now)
        raise MalformedMessageError(f"a {frame.identity.kind} in a training round")

    def _take_tensor(self, session: CloudSession, frame: Frame, now: float) -> list[Output]:
        # Gradients of a session add up in the order of its micro-batches: sums of floats differ.
        name = session.assignment.session
        key: Key = (name, frame.step, frame.micro_batch)
        if isinstance(frame.content, Activation) and self._settings.labels is Labels.DEVICE:
            said = session.answer(frame, self._tail.open(key, frame.content))
            session.step_tokens = frame.content.step_tokens
            session.expect("tail_gradient", frame.step, frame.micro_batch, now)
            self._arrived(session, frame, now)
            return [said]
        if frame.micro_batch != self._next[frame.device]:
            return self._defer(frame)
        match frame.content:
            case Activation() as content:
                gradient, loss_sum = self._tail.train(key, content)
                session.step_tokens = content.step_tokens
            case TailGradient() as content:
                gradient, loss_sum = self._tail.close(key, content), content.loss_sum
        session.step_loss += loss_sum
        self._next[frame.device] += 1
        self._arrived(session, frame, now)
        return [session.answer(frame, gradient), *self._deferred(session, now)]

    def _defer(self, frame: Frame) -> list[Output]:
        held = self._held[frame.device]
        if frame.identity not in {other.identity for other in held}:
            held.append(frame)
        return []

    def _deferred(self, session: CloudSession, now: float) -> list[Output]:
        held = self._held[session.assignment.device]
        for frame in held:
            if frame.step == self.step and frame.micro_batch == self._next[frame.device]:
                held.remove(frame)
                return self._take(session, frame, now)
        return []

    def _arrived(self, session: CloudSession, frame: Frame, now: float) -> None:
        session.awaited.arrived(frame.identity, now)
        session.progress_at = now

    def _barrier(self, now: float) -> list[Output]:
        """When all sessions of the step are in: one optimizer step, then what was held back."""
        ready = self.sessions and all(n == self._settings.micro_batches for n in self._next.values())
        if not ready or self.step == self._settings.local_steps:
            return []
        total = sum(session.step_tokens for session in self.sessions.values())
        weights = {s.assignment.session: s.step_tokens / total for s in self.sessions.values()}
        self._tail.step(weights)
        said: list[Output] = [self._close_step(session) for session in self.sessions.values()]
        self.step += 1
        for device, session in self.sessions.items():
            self._next[device] = 0
            session.progress_at = now
            self._expect_step(session, now)
        return [*said, *self._release(now)]

    def _release(self, now: float) -> list[Output]:
        said: list[Output] = []
        for device in list(self.sessions):
            held, self._held[device] = self._held[device], []
            for frame in sorted(held, key=lambda frame: frame.micro_batch):
                said += self.handle(frame, now)
        return said

    def _close_step(self, session: CloudSession) -> Metrics:
        name = session.assignment.session
        self._ledger.apply(name, self.step)
        loss = session.step_loss / session.step_tokens
        session.losses.append(loss)
        session.tokens += session.step_tokens
        session.kept.trim(self.step)
        session.step_loss = 0.0
        return Metrics(
            agent=session.assignment.cloud,
            role=Tier.CLOUD,
            round=session.assignment.round,
            session=name,
            step=self.step,
            loss=loss,
            tokens=session.step_tokens,
        )

    def _expect_step(self, session: CloudSession, now: float) -> None:
        if self.step < self._settings.local_steps:
            for micro_batch in range(self._settings.micro_batches):
                session.expect("activation", self.step, micro_batch, now)
            return
        for micro_batch in UPDATE_OF.values():
            session.expect("update", self.step, micro_batch, now)
