"""A training round in the cloud: lockstep over its sessions, and a ledger of what was applied. No I/O."""

from collections.abc import Iterable, Mapping, Sequence

from iotsplit.errors import MalformedMessageError, PeerError
from iotsplit.messages import (
    Activation,
    Frame,
    Identity,
    Resume,
    Stuck,
    TailGradient,
    Update,
    Want,
)
from iotsplit.plan import Labels, Tier
from iotsplit.role import Output, Refused
from iotsplit.session import Awaited, steps_kept
from iotsplit.settings import TrainingSettings
from iotsplit.states import Assignment, Metrics
from iotsplit_cloud.journal import RoundCheckpoint, SessionRecord
from iotsplit_cloud.sessions import CloudSession
from iotsplit_cloud.tail import Key
from iotsplit_cloud.training import UPDATE_OF, Equipment, TrainingRound


class LockstepRound(TrainingRound):
    """Treats each micro-batch as it comes; steps when all sessions of the step are in.

    Args:
        assignments: the round's sessions by device.
        settings: the fleet's settings.
        equipment: the tail and what belongs to it.
    """

    can_carry = True

    def __init__(
        self,
        assignments: dict[str, Assignment],
        settings: TrainingSettings,
        equipment: Equipment,
        *,
        now: float,
    ) -> None:
        super().__init__(assignments, settings, equipment, now=now)
        self._turns, self._to_start, self._caches = equipment.turns, equipment.to_start, equipment.caches
        self._resumed = False
        self._has_shrunk = False  # sessions were dropped since the last tick
        self._saved: list[RoundCheckpoint] = []  # that this start of the cloud has found
        self._next: dict[str, int] = dict.fromkeys(self.sessions, 0)  # micro-batches done in this step
        self._held: dict[str, list[Frame]] = {device: [] for device in self.sessions}
        for session in self.sessions.values():
            self._expect_step(session, now)

    def handle(self, frame: Frame, now: float) -> list[Output]:
        """Take a frame of one of the round's sessions."""
        session = self._session_of(frame)
        if session is None:
            return []
        if isinstance(frame.content, Want | Resume | Stuck):
            return self._reply(session, frame, now)
        if not self._is_wanted(session, frame):
            return []  # a repetition, or too far ahead: it will be asked for
        self._held[frame.device].append(frame)
        return self._go_on([session], now)

    def hear(self, metrics: Metrics, now: float) -> None:
        """Nothing is news: the loss is ours, and frames tell how far a session is."""

    def _reply(self, session: CloudSession, frame: Frame, now: float) -> list[Output]:
        match frame.content:
            case Want() as want:
                return self._answer(session, frame, want, now)
            case Resume() as resume if session.backup.is_news(frame, resume):
                return self._send_again(session, resume.step, now)
            case Stuck(unfit=True) as stuck:
                session.unfit = stuck.reason
            case Stuck() as stuck:
                self.stuck = stuck.reason
        return []

    def tick(self, now: float) -> list[Output]:
        """Go on without those that were dropped, and ask for what is late."""
        said: list[Output] = []
        if self._has_shrunk:
            self._has_shrunk = False
            # Earlier checkpoints could only be gone on from with the sessions that have left.
            self._saved = []
            said += [*self._caches.take_changes(), self._checkpoint()] if self.sessions else []
            said += self._go_on(self.sessions.values(), now)
        for device, session in self.sessions.items():
            said += session.ask(now, self._here(device))
        return said

    def drop(self, device: str, reason: str, now: float) -> list[Output]:
        """Forget a session and what it brought for the step at hand; the next tick goes on without it."""
        session = self.sessions[device]
        self._tail.drop(session.assignment.session)
        for table in (self._next, self._held):
            table.pop(device)
        self._has_shrunk = True
        return super().drop(device, reason, now)

    # --- recovery

    def resume(self, saved: Sequence[RoundCheckpoint], now: float) -> list[Output]:
        """Go on after a restart of the cloud, from the newest of what it has saved of the round."""
        self._saved = sorted(saved, key=lambda checkpoint: checkpoint.step)
        self._resumed = True
        return self._rewind(self._settings.local_steps, now)

    def _answer(self, session: CloudSession, frame: Frame, want: Want, now: float) -> list[Output]:
        if want.samples:
            return [session.send(self._caches.rows(frame.device, want), frame)]
        again = session.again(frame, want)
        made = want.wanted in {"gradient", "tail_hidden"} and frame.step < self.step
        if made and not again and frame.step >= session.backup.floor(Tier.EDGE):
            return self._rewind(frame.step, now)  # its Resume was lost
        return list(again)

    def _send_again(self, session: CloudSession, step: int, now: float) -> list[Output]:
        """What an edge needs from a step on; it has come back and stands there."""
        if session.move is not None:
            session.move.resumed = step
        if step > self._place(session):
            return [self._resume(session)]  # it has come back further ahead than we
        if session.backup.covers(Tier.EDGE, step):
            return list(session.backup.since(Tier.EDGE, step))
        if step < session.backup.floor(Tier.EDGE):
            self.stuck = f"{session.assignment.edge} has lost what it had saved of {session.assignment.device}"
            return []
        return self._rewind(step, now)

    def _rewind(self, step: int, now: float) -> list[Output]:
        """Go back to the newest state saved at or before a step, and tell all edges."""
        found = [checkpoint for checkpoint in self._saved if checkpoint.step <= step]
        records: Mapping[str, SessionRecord] = {}
        if found:
            self._tail.restore(found[-1].body)
            self.step, records = found[-1].step, found[-1].sessions
        elif self._resumed and not self.dropped:
            self._to_start()
            self.step = 0
        else:
            self.stuck = f"the cloud has no checkpoint of step {step} or before"
            return []
        newest = max([self.step, *(each.step for each in self._saved if each.regular)])
        for device, session in self.sessions.items():
            record = records.get(device, SessionRecord(tokens=0, losses=(), edge_checkpoint=0))
            self._ledger.rewind(session.assignment.session, self.step)
            session.losses, session.tokens = list(record.losses), record.tokens
            session.backup.restart(self.step, newest=newest)
            session.backup.learn(Tier.EDGE, record.edge_checkpoint)
            session.awaited = Awaited()
            self.updates[device] = {}
            self._start_step(device, now)
        resumed = [self._resume(session) for session in self.sessions.values()]
        return [*resumed, *self._go_on(self.sessions.values(), now)]

    def _resume(self, session: CloudSession) -> Frame:
        return session.resume(self._turns.resume(self._place(session)))

    def _place(self, session: CloudSession) -> int:
        """The step that a session has to bring next: it may be done with the one that others are late for."""
        over = self._next[session.assignment.device] == self._settings.micro_batches
        return self.step + over if self.step < self._settings.local_steps else self.step

    def _checkpoint(self, *, regular: bool = False) -> RoundCheckpoint:
        records = {
            device: SessionRecord(
                tokens=session.tokens,
                losses=tuple(session.losses),
                edge_checkpoint=session.backup.newest(Tier.EDGE),
            )
            for device, session in self.sessions.items()
        }
        body = self._tail.checkpoint()
        return RoundCheckpoint(step=self.step, regular=regular, sessions=records, body=body)

    # --- what comes

    def _is_wanted(self, session: CloudSession, frame: Frame) -> bool:
        identity = frame.identity
        if identity in self._here(frame.device):
            return False
        if identity in session.awaited:
            return True
        match frame.content:
            case Update():
                fits = frame.step == self._settings.local_steps
                return fits and UPDATE_OF.get(frame.tier) == frame.micro_batch and frame.step > self.step
            case Activation() | TailGradient() if frame.tier is Tier.EDGE:
                far = min(self.step + steps_kept(self._settings.checkpoint_every), self._settings.local_steps)
                near = self.step < frame.step < far and frame.micro_batch < self._settings.micro_batches
                return near or self._has_overtaken(session, frame)
        return False

    def _has_overtaken(self, session: CloudSession, frame: Frame) -> bool:
        """Whether it is the gradient of a last layer's output that is not even made yet."""
        before = session.identity("activation", frame.step, frame.micro_batch)
        return isinstance(frame.content, TailGradient) and before in session.awaited

    def _here(self, device: str) -> set[Identity]:
        """What has come of a session and waits for its turn."""
        return {frame.identity for frame in self._held[device]}

    def _go_on(self, sessions: Iterable[CloudSession], now: float) -> list[Output]:
        """Treat what is held of these sessions and can be treated, and of all once the step is complete."""
        said = [output for session in sessions for output in self._take_held(session, now)]
        while self._is_complete:
            said += self._finish_step(now)
            said += [output for each in self.sessions.values() for output in self._take_held(each, now)]
        return said

    def _take_held(self, session: CloudSession, now: float) -> list[Output]:
        said: list[Output] = []
        while (frame := self._next_frame(session)) is not None:
            self._held[frame.device].remove(frame)
            try:
                said += self._take(session, frame, now)
            except PeerError as error:
                said.append(Refused(message=frame, error=error))
                if session.awaited.is_hopeless(frame.identity, error):
                    session.unfit = str(error)
        return said

    def _next_frame(self, session: CloudSession) -> Frame | None:
        """A held frame that can be treated now.

        Gradients of a session add up in the order of its micro-batches: sums of floats differ.
        """
        if session.unfit:
            return None  # it is about to leave
        for frame in self._held[session.assignment.device]:
            adds = isinstance(frame.content, TailGradient) or (
                isinstance(frame.content, Activation) and self._settings.labels is Labels.CLOUD
            )
            turn = not adds or frame.micro_batch == self._next[frame.device]
            if turn and frame.identity in session.awaited:
                return frame
        return None

    def _take(self, session: CloudSession, frame: Frame, now: float) -> list[Output]:
        match frame.content:
            case Update() as update if UPDATE_OF.get(frame.tier) == frame.micro_batch:
                decoded = session.check(frame.tier, update, self._check)
                self.updates[frame.device][frame.tier] = decoded
                self._arrived(session, frame, now)
                return []
            case Activation() | TailGradient() if frame.tier is Tier.EDGE:
                return self._take_tensor(session, frame, now)
        raise MalformedMessageError(f"a {frame.identity.kind} in a training round")

    def _take_tensor(self, session: CloudSession, frame: Frame, now: float) -> list[Output]:
        key: Key = (session.assignment.session, frame.step, frame.micro_batch)
        if isinstance(frame.content, Activation) and self._settings.labels is Labels.DEVICE:
            said = session.answer(frame, self._tail.open(key, frame.content))
            session.step_tokens = frame.content.step_tokens
            session.expect("tail_gradient", frame.step, frame.micro_batch, now)
            self._arrived(session, frame, now)
            return [said]
        match frame.content:
            case Activation() as content:
                gradient, loss_sum = self._tail.train(key, content)
                session.step_tokens = content.step_tokens
            case TailGradient() as content:
                gradient, loss_sum = self._tail.close(key, content), content.loss_sum
            case _:
                raise MalformedMessageError(f"a {frame.identity.kind} in a training round")
        session.step_loss += loss_sum
        self._next[frame.device] += 1
        self._arrived(session, frame, now)
        return [session.answer(frame, gradient)]

    # --- steps

    @property
    def _is_complete(self) -> bool:
        """All sessions of the step are in."""
        return bool(self.sessions) and not self._late and self.step < self._settings.local_steps

    def _finish_step(self, now: float) -> list[Output]:
        """One optimizer step, and the next step is waited for."""
        total = sum(session.step_tokens for session in self.sessions.values())
        weights = {s.assignment.session: s.step_tokens / total for s in self.sessions.values()}
        self._tail.step(weights)
        said: list[Output] = []
        for session in self.sessions.values():
            self._ledger.apply(session.assignment.session, self.step)
            said.append(session.close_step(self.step))
        self.step += 1
        said += self._save()
        for device in self.sessions:
            self._start_step(device, now)
        return said

    def _save(self) -> list[Output]:
        if self.step % self._settings.checkpoint_every or self.step == self._settings.local_steps:
            return []
        # It is on the disk before anything that is said later leaves.
        for session in self.sessions.values():
            session.backup.checkpoint = max(self.step, session.backup.checkpoint)
        return [*self._caches.take_changes(), self._checkpoint(regular=True)]

    def _start_step(self, device: str, now: float) -> None:
        session = self.sessions[device]
        self._next[device] = 0
        self._late.add(device)
        self._held[device] = [frame for frame in self._held[device] if frame.step >= self.step]
        session.step_loss = 0.0
        session.progress_at = now
        self._expect_step(session, now)

    def _expect_step(self, session: CloudSession, now: float) -> None:
        if self.step < self._settings.local_steps:
            for micro_batch in range(self._settings.micro_batches):
                session.expect("activation", self.step, micro_batch, now)
            return
        for micro_batch in UPDATE_OF.values():
            session.expect("update", self.step, micro_batch, now)
