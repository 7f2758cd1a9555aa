"""One session on the edge: activations go up, gradients come down, what concerns only the ends is passed on."""

import msgspec
import torch

from iotsplit.errors import MalformedMessageError
from iotsplit.messages import (
    Activation,
    Assignment,
    Content,
    Frame,
    Gradient,
    Metrics,
    PackedTensor,
    Score,
    TailGradient,
    TailHidden,
    Update,
    Want,
    frame_of,
)
from iotsplit.plan import Labels, Tier
from iotsplit.role import Output
from iotsplit.session import Kept, wanted_by
from iotsplit.settings import TrainingSettings
from iotsplit_edge.work import EdgeWork, Key

UP = (Tier.EDGE, Tier.CLOUD)
DOWN = (Tier.EDGE, Tier.DEVICE)
MAX_EARLY = 64
"""Frames held that came out of order: more than any honest device sends ahead."""


class EdgeSession:
    """A session from the edge's side: strictly in the order of steps and micro-batches.

    The edge needs no timers: the ends ask for what is late, and the edge answers or passes the question on.
    """

    def __init__(self, assignment: Assignment, settings: TrainingSettings, work: EdgeWork) -> None:
        self.assignment = assignment
        self._settings = settings
        self._work = work
        self._training = assignment.task == "train"
        self._labels_stay = settings.labels is Labels.DEVICE
        self._kept = Kept()
        self._forward: Key = (0, 0)  # next to go up
        self._backward: Key = (0, 0)  # next to come down
        self._early: dict[Key, Frame] = {}
        self._gradients: dict[Key, torch.Tensor] = {}
        self._trained_tokens = 0
        self._step_tokens = 0

    def handle(self, frame: Frame) -> list[Output]:
        """Take a frame from the device or from the cloud."""
        key = (frame.step, frame.micro_batch)
        from_below = frame.tier is Tier.DEVICE
        match frame.content:
            case Want():
                return self._answer(frame, frame.content)
            case Activation() if from_below:
                return self._take_activation(key, frame)
            case Gradient() if not from_below and self._work.waits_for(key):
                return self._take_gradient(key, frame.content)
            case TailHidden(hidden=tensor) | TailGradient(gradient=tensor) if self._work.knows(key):
                up = isinstance(frame.content, TailGradient)
                return self._pass_on(frame, key, tensor) if from_below is up else []
            case Score() if from_below is self._labels_stay and key < self._forward:
                return self._pass_on(frame, key)
        return []  # a repetition, or from the wrong side

    def _take_activation(self, key: Key, frame: Frame) -> list[Output]:
        full = len(self._early) >= MAX_EARLY and key != self._forward
        if key < self._forward or key[1] > self._last_micro_batch or full:
            return []
        self._early[key] = frame
        said: list[Output] = []
        while (ready := self._early.get(self._forward)) is not None:
            said += self._send_up(self._early.pop(self._forward), ready.content)
        return said

    def _send_up(self, frame: Frame, content: Content) -> list[Output]:
        assert isinstance(content, Activation)  # noqa: S101 - only activations come early
        key = self._forward
        if self._training and key[0] > self._backward[0]:
            raise MalformedMessageError(f"step {key[0]} before step {self._backward[0]} was over")
        up = self._work.forward(key, content, training=self._training)
        if key[1] == 0:
            self._step_tokens = content.step_tokens
        self._forward = self._after(key)
        over = frame.step - 1 if self._training else frame.step - MAX_EARLY
        self._kept.trim(over)
        self._work.trim(over)
        return [self._kept.keep(frame_of(self.assignment, up, way=UP, at=key))]

    def _take_gradient(self, key: Key, content: Gradient) -> list[Output]:
        if key not in self._gradients:
            self._gradients[key] = self._work.unpack_gradient(key, content)
        said: list[Output] = []
        while self._backward in self._gradients:
            said += self._send_down(self._backward)
        return said

    def _send_down(self, key: Key) -> list[Output]:
        down = self._work.backward(key, self._gradients.pop(key))
        said: list[Output] = [self._kept.keep(frame_of(self.assignment, down, way=DOWN, at=key))]
        self._backward = self._after(key)
        if self._backward[0] == key[0]:
            return said
        self._work.step()
        self._trained_tokens += self._step_tokens
        said.append(self._metrics(key[0]))
        if self._backward[0] == self._settings.local_steps:
            update = Update(tier=Tier.EDGE, tokens=self._trained_tokens, tensors=self._work.adapter())
            said.append(self._kept.keep(frame_of(self.assignment, update, way=UP, at=(key[0] + 1, 1))))
        return said

    def _metrics(self, step: int) -> Metrics:
        return Metrics(
            agent=self.assignment.edge,
            role=Tier.EDGE,
            round=self.assignment.round,
            session=self.assignment.session,
            step=step,
            tokens=self._step_tokens,
        )

    def _pass_on(self, frame: Frame, key: Key, tensor: PackedTensor | None = None) -> list[Output]:
        if self._kept.again(frame.identity, epoch=frame.epoch) is not None:
            return []
        if tensor is not None:
            # What is kept is not taken a second time: garbage would stand in the way of the real one.
            self._work.check(key, tensor)
        way = UP if frame.tier is Tier.DEVICE else DOWN
        return [self._kept.keep(frame_of(self.assignment, frame.content, way=way, at=key))]

    def _answer(self, frame: Frame, want: Want) -> list[Output]:
        again = self._kept.again(wanted_by(frame, want), epoch=self.assignment.epoch)
        if again is not None and again.to in (frame.sender, self.assignment.cloud):
            return [again]
        to = Tier.CLOUD if frame.tier is Tier.DEVICE else Tier.DEVICE
        agents = {Tier.CLOUD: self.assignment.cloud, Tier.DEVICE: self.assignment.device}
        passed = msgspec.structs.replace(
            frame, sender=self.assignment.edge, tier=Tier.EDGE, to=agents[to], to_tier=to
        )
        return [passed]

    @property
    def _last_micro_batch(self) -> int:
        return self._settings.micro_batches - 1 if self._training else 0

    def _after(self, key: Key) -> Key:
        """The key that follows: evaluations have one micro-batch a step."""
        step, micro_batch = key
        return (step + 1, 0) if micro_batch == self._last_micro_batch else (step, micro_batch + 1)
