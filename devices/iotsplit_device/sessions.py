"""What a device does with a session: train on its batches, or score its held-out data. No I/O."""

from collections.abc import Callable
from typing import Protocol

import torch

from iotsplit.errors import MalformedMessageError
from iotsplit.messages import (
    Activation,
    Assignment,
    Frame,
    Gradient,
    Identity,
    Metrics,
    Score,
    TailHidden,
    Update,
    frame_of,
)
from iotsplit.plan import Labels, Tier
from iotsplit.role import Output
from iotsplit.session import Awaited, Kept
from iotsplit.settings import TrainingSettings
from iotsplit_device.batches import MicroBatch
from iotsplit_device.work import DeviceWork

UP = (Tier.DEVICE, Tier.EDGE)
EVALUATION_WINDOW = 2
"""Held-out micro-batches on their way at once: enough that no tier idles, little to keep."""


class DeviceSession(Protocol):
    """A session from the device's side."""

    assignment: Assignment
    kept: Kept
    awaited: Awaited

    @property
    def busy(self) -> bool:
        """Whether `work` has something to do now."""

    def work(self, now: float) -> list[Output]:
        """Do one piece of work."""

    def handle(self, frame: Frame, now: float) -> list[Output]:
        """Take a frame that is awaited."""


class Training:
    """Local steps of one round: batches up, gradients down, at last the device's LoRA to the cloud."""

    def __init__(self, assignment: Assignment, settings: TrainingSettings, work: DeviceWork) -> None:
        self.assignment = assignment
        self.kept = Kept()
        self.awaited = Awaited()
        self._settings = settings
        self._work = work
        self._step = 0
        self._trained_tokens = 0
        self._loss_sum = 0.0
        self._arrived: dict[int, torch.Tensor] = {}
        self._batches: list[MicroBatch] = []
        self._begin_step()

    @property
    def busy(self) -> bool:
        """A micro-batch of the step has not gone up yet."""
        return self._sent < len(self._batches)

    def work(self, now: float) -> list[Output]:
        """Send the next micro-batch up."""
        key = (self._step, self._sent)
        content = self._work.forward(
            key,
            self._batches[self._sent],
            step_tokens=self._step_tokens,
            steps=self._settings.local_steps,
        )
        self._sent += 1
        at_cloud = self._settings.labels is Labels.CLOUD
        self._await(key, Gradient if at_cloud else TailHidden, now)
        return [self.kept.keep(frame_of(self.assignment, content, way=UP, at=key))]

    def handle(self, frame: Frame, now: float) -> list[Output]:
        """Take a gradient or, with labels kept here, the last layer's output."""
        key = (frame.step, frame.micro_batch)
        match frame.content:
            case TailHidden() as content:
                batch = self._batches[frame.micro_batch]
                answer = self._work.tail(content, batch, step_tokens=self._step_tokens)
                self._loss_sum += answer.loss_sum
                self._await(key, Gradient, now)
                return [self.kept.keep(frame_of(self.assignment, answer, way=UP, at=key))]
            case Gradient() as content:
                batch = self._batches[frame.micro_batch]
                self._arrived[frame.micro_batch] = self._work.unpack_gradient(content, batch)
                return self._backward()
        raise MalformedMessageError(f"a {frame.identity.kind} in a training session")

    def _backward(self) -> list[Output]:
        # Gradients add up in the order of micro-batches, however they come: sums of floats differ.
        while self._closed in self._arrived:
            self._work.backward((self._step, self._closed), self._arrived.pop(self._closed))
            self._closed += 1
        if self._closed < len(self._batches):
            return []
        self._work.step()
        said: list[Output] = [self._metrics()]
        self._step += 1
        if self._step < self._settings.local_steps:
            self._begin_step()
            return said
        self._batches = []
        update = Update(tier=Tier.DEVICE, tokens=self._trained_tokens, tensors=self._work.adapter())
        way, at = (Tier.DEVICE, Tier.CLOUD), (self._settings.local_steps, 0)
        return [*said, self.kept.keep(frame_of(self.assignment, update, way=way, at=at))]

    def _metrics(self) -> Metrics:
        on_device = self._settings.labels is Labels.DEVICE
        return Metrics(
            agent=self.assignment.device,
            role=Tier.DEVICE,
            round=self.assignment.round,
            session=self.assignment.session,
            step=self._step,
            tokens=self._step_tokens,
            loss=self._loss_sum / self._step_tokens if on_device else None,
        )

    def _begin_step(self) -> None:
        self._batches = self._work.batches.step(
            self.assignment.round, self._step, local_steps=self._settings.local_steps
        )
        self._step_tokens = sum(batch.tokens for batch in self._batches)
        self._trained_tokens += self._step_tokens
        self._loss_sum = 0.0
        self._sent = self._closed = 0
        self.kept.trim(self._step - 1)

    def _await(self, key: tuple[int, int], kind: type[Gradient | TailHidden], now: float) -> None:
        tag = str(kind.__struct_config__.tag)
        self.awaited.expect(Identity(self.assignment.session, *key, tag), now)


class Evaluation:
    """Held-out data of the device, scored with one adapter version; each micro-batch is a step."""

    def __init__(self, assignment: Assignment, settings: TrainingSettings, work: DeviceWork) -> None:
        self.assignment = assignment
        self.kept = Kept()
        self.awaited = Awaited()
        self._at_cloud = settings.labels is Labels.CLOUD
        self._work = work
        self._batches = work.batches.evaluation()
        self._sent = 0

    @property
    def busy(self) -> bool:
        """Held-out data is left, and not too much of it is on its way."""
        return self._sent < len(self._batches) and len(self.awaited) < EVALUATION_WINDOW

    def work(self, now: float) -> list[Output]:
        """Send the next micro-batch up."""
        at = (self._sent, 0)
        content: Activation = self._work.infer(self._batches[self._sent], steps=len(self._batches))
        self._sent += 1
        kind = "score" if self._at_cloud else "tail_hidden"
        self.awaited.expect(Identity(self.assignment.session, *at, kind), now)
        return [self.kept.keep(frame_of(self.assignment, content, way=UP, at=at))]

    def handle(self, frame: Frame, now: float) -> list[Output]:
        """Take a score, or the last layer's output to be scored here."""
        del now
        match frame.content:
            case TailHidden() as content:
                score = self._work.score(content, self._batches[frame.step])
                return [self.kept.keep(frame_of(self.assignment, score, way=UP, at=(frame.step, 0)))]
            case Score():
                self.kept.trim(min(self._waiting_steps(), default=frame.step))
                return []
        raise MalformedMessageError(f"a {frame.identity.kind} in an evaluation")

    def _waiting_steps(self) -> list[int]:
        return [identity.step for identity in self.awaited.identities]


SESSIONS: dict[str, Callable[[Assignment, TrainingSettings, DeviceWork], DeviceSession]] = {
    "train": Training,
    "evaluate": Evaluation,
}
