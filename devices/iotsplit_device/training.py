"""Local steps of a round in a session with an edge. No I/O."""

from collections.abc import Sequence

import torch

from iotsplit.errors import DivergedError, MalformedMessageError, PeerError
from iotsplit.messages import (
    Frame,
    Gradient,
    Identity,
    Resume,
    Stuck,
    TailHidden,
    Update,
    Want,
)
from iotsplit.plan import Labels, Tier
from iotsplit.role import Output
from iotsplit.session import Awaited, Turns, reach, wanted_by
from iotsplit.settings import TrainingSettings
from iotsplit.states import Assignment, Metrics
from iotsplit_device.batches import MicroBatch
from iotsplit_device.records import Checkpoint, Unusable
from iotsplit_device.sessions import Asking
from iotsplit_device.work import DeviceWork


class Training(Asking):
    """Local steps of one round: batches up, gradients down, at last the device's LoRA to the cloud."""

    def __init__(
        self, assignment: Assignment, settings: TrainingSettings, work: DeviceWork, turns: Turns
    ) -> None:
        super().__init__(assignment, settings)
        self._settings = settings
        self._work = work
        self._turns = turns
        self._start = work.adapter()  # the adapter version, before the first step
        self._saved: list[Checkpoint] = []
        self._step = 0
        self._trained_tokens = 0
        self._loss_sum = 0.0
        self._arrived: dict[int, torch.Tensor] = {}
        self._batches: list[MicroBatch] = []
        self._sent = self._closed = 0  # micro-batches of the step
        self._problem = ""

    @property
    def busy(self) -> bool:
        """A micro-batch of the step has not gone up yet."""
        return self._sent < len(self._batches)

    def begin(self, saved: Sequence[Checkpoint]) -> list[Output]:
        """Start, from the newest of what this device has saved of the session."""
        self._saved = sorted(saved, key=lambda checkpoint: checkpoint.step)
        # First of all what it goes on from: its edge will, whatever becomes of us.
        return [*self._remembered(), *self._rewind(self.backup.assignment.steps)]

    def reassign(self, assignment: Assignment, now: float) -> list[Output]:
        """Go on at another edge, which will say from where; or end where the others left us behind."""
        was_over = self._is_over
        super().reassign(assignment, now)
        if self._step > assignment.steps:
            return self._rewind(assignment.steps)
        return self._finish() if self._is_over and not was_over else []

    @property
    def _is_over(self) -> bool:
        return self._step >= self.backup.assignment.steps

    def work(self, now: float) -> list[Output]:
        """Send the next micro-batch up."""
        key = (self._step, self._sent)
        try:
            content = self._work.forward(
                key,
                self._batches[self._sent],
                step_tokens=self._step_tokens,
                steps=self._settings.local_steps,
            )
        except DivergedError as error:
            return self._give_up(str(error))
        self._sent += 1
        at_cloud = self._settings.labels is Labels.CLOUD
        self._await(key, Gradient if at_cloud else TailHidden, now)
        return [self.backup.keep(content, Tier.EDGE, key)]

    def answer(self, frame: Frame, now: float) -> list[Output]:
        """Take a request for what was sent."""
        del now
        if self._problem:
            return self._give_up(self._problem)
        match frame.content:
            case Want() as want:
                return self._answer(frame, want)
            case Resume() as resume if self.backup.is_news(frame, resume):
                return self._send_again(resume.step)
        return []

    def handle(self, frame: Frame, now: float) -> list[Output]:
        """Take a gradient or, with labels kept here, the last layer's output."""
        try:
            return self._take(frame, now)
        except PeerError as error:
            if self.awaited.is_hopeless(frame.identity, error):
                return self._give_up(str(error))
            raise

    def _give_up(self, problem: str) -> list[Output]:
        """Leave the round: no step can follow this one."""
        self._problem = problem
        self._batches = []
        self.awaited = Awaited()
        return [self.backup.send(Stuck(reason=problem, unfit=True), Tier.EDGE, (self._step, 0))]

    def _take(self, frame: Frame, now: float) -> list[Output]:
        key = (frame.step, frame.micro_batch)
        match frame.content:
            case TailHidden() as content:
                batch = self._batches[frame.micro_batch]
                answer = self._work.tail(key, content, batch, step_tokens=self._step_tokens)
                self._loss_sum += answer.loss_sum
                self._await(key, Gradient, now)
                return [self.backup.keep(answer, Tier.EDGE, key)]
            case Gradient() as content:
                batch = self._batches[frame.micro_batch]
                self._arrived[frame.micro_batch] = self._work.unpack_gradient(content, batch)
                return self._backward()
        raise MalformedMessageError(f"a {frame.identity.kind} in a training session")

    def _answer(self, frame: Frame, want: Want) -> list[Output]:
        if want.samples:
            return [self.backup.send(self._work.rows(want.samples), Tier.EDGE, (frame.step, frame.micro_batch))]
        again = self.backup.again(wanted_by(frame, want))
        if again is not None:
            return [again]
        made = want.wanted in {"activation", "tail_gradient"} and frame.step < self._step
        lost = made and frame.step >= self.backup.floor(Tier.EDGE)
        return self._rewind(frame.step) if lost else []  # the edge's Resume was lost

    def _send_again(self, step: int) -> list[Output]:
        """What the edge needs from a step on; it has come back and stands there."""
        if step > self._step:
            return [self._resume()]  # it has come back further ahead than we have
        if self.backup.covers(Tier.EDGE, step):
            return list(self.backup.since(Tier.EDGE, step))
        return self._rewind(step)

    def _rewind(self, step: int) -> list[Output]:
        """Go back to the newest state saved at or before a step, and tell the edge."""
        said = self._restore(step)
        self.backup.restart(self._step, newest=self._saved[-1].step if self._saved else 0)
        self.awaited = Awaited()
        self._arrived.clear()
        return [*said, *self._say_where(), *self._begin_step()]

    def _say_where(self) -> list[Output]:
        """Tell who works with us where we stand."""
        return [self._resume()]

    def _restore(self, step: int) -> list[Output]:
        """Take over the newest checkpoint at or before a step that fits, or else the start of the round."""
        said: list[Output] = []
        for checkpoint in reversed([each for each in self._saved if each.step <= step]):
            try:
                self._work.restore(checkpoint.body)
            except PeerError as error:
                self._saved.remove(checkpoint)
                said.append(Unusable(step=checkpoint.step, reason=str(error)))
                continue
            self._step, self._trained_tokens = checkpoint.step, checkpoint.tokens
            return said
        self._work.load(self._start, self.backup.assignment.round)
        self._step = self._trained_tokens = 0
        return said

    def _resume(self) -> Frame:
        return self.backup.send(self._turns.resume(self._step), Tier.EDGE)

    def _backward(self) -> list[Output]:
        # Gradients add up in the order of micro-batches, however they come: sums of floats differ.
        while self._closed in self._arrived:
            self._work.backward((self._step, self._closed), self._arrived.pop(self._closed))
            self._closed += 1
        if self._closed < len(self._batches):
            return []
        self._work.step()
        said: list[Output] = [self._metrics()]
        self._trained_tokens += self._step_tokens
        self._step += 1
        if not self._is_over:
            said += self._save()
        return [*said, *self._begin_step()]

    def _finish(self) -> list[Output]:
        """Bring what was trained to the cloud."""
        self._batches = []
        self.awaited = Awaited()
        update = Update(tier=Tier.DEVICE, tokens=self._trained_tokens, tensors=self._work.update())
        return [*self._remembered(), self.backup.keep(update, Tier.CLOUD, (self._step, 0))]

    def _remembered(self) -> list[Output]:
        """What has to be on the disk before anything that is said later leaves."""
        change = self._work.cache.take_change() if self._work.cache is not None else None
        return [] if change is None else [change]

    def _save(self) -> list[Output]:
        if self._step % self._settings.checkpoint_every:
            return []
        checkpoint = Checkpoint(
            session=self.backup.assignment.session,
            step=self._step,
            tokens=self._trained_tokens,
            body=self._work.checkpoint(),
        )
        if self._step > self.backup.checkpoint:
            oldest = self._step - reach(Tier.DEVICE, self._settings.checkpoint_every)
            self._saved = [*(each for each in self._saved if each.step >= oldest), checkpoint]
        # It is on the disk before anything that is said later leaves.
        self.backup.checkpoint = max(self._step, self.backup.checkpoint)
        return [*self._remembered(), checkpoint]

    def _metrics(self) -> Metrics:
        on_device = self._settings.labels is Labels.DEVICE
        assignment = self.backup.assignment
        return Metrics(
            agent=assignment.device,
            role=Tier.DEVICE,
            round=assignment.round,
            session=assignment.session,
            step=self._step,
            tokens=self._step_tokens,
            loss=self._loss_sum / self._step_tokens if on_device else None,
        )

    def _begin_step(self) -> list[Output]:
        if self._is_over:
            return self._finish()
        self._batches = self._work.batches.step(
            self.backup.assignment.round, self._step, local_steps=self._settings.local_steps
        )
        self._step_tokens = sum(batch.tokens for batch in self._batches)
        self._loss_sum = 0.0
        self._sent = self._closed = 0
        return []

    def _await(self, key: tuple[int, int], kind: type[Gradient | TailHidden], now: float) -> None:
        tag = str(kind.__struct_config__.tag)
        self.awaited.expect(Identity(self.backup.assignment.session, *key, tag), now)
