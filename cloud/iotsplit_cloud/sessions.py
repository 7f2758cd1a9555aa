"""One session from the cloud's side: what is waited for, what was answered, what it has brought."""

from dataclasses import dataclass, field

from iotsplit.messages import Assignment, Contents, Frame, Identity, Update, Want, frame_of
from iotsplit.plan import Tier
from iotsplit.session import Awaited, Kept, wanted_by

DOWN = (Tier.CLOUD, Tier.EDGE)


@dataclass(slots=True, kw_only=True)
class CloudSession:
    """The state of a session in the cloud.

    Args:
        step_tokens: loss tokens of the step at hand.
        step_loss: sum of losses of the step at hand.
        losses: mean loss of each finished step.
        progress_at: when the session last brought something new, in the runner's seconds.
    """

    assignment: Assignment
    progress_at: float
    kept: Kept = field(default_factory=Kept)
    awaited: Awaited = field(default_factory=Awaited)
    step_tokens: int = 0
    step_loss: float = 0.0
    tokens: int = 0
    losses: list[float] = field(default_factory=list)

    def belongs(self, frame: Frame) -> bool:
        """Whether the frame is of this session's epoch and comes from its edge, or from its device."""
        current = frame.session == self.assignment.session and frame.epoch == self.assignment.epoch
        return current and frame.device == self.assignment.device and frame.sender == self._sender(frame)

    def _sender(self, frame: Frame) -> str | None:
        if isinstance(frame.content, Update):
            return self.assignment.device  # the topic of an update names the device for both tiers
        agents = {Tier.EDGE: self.assignment.edge, Tier.DEVICE: self.assignment.device}
        return agents.get(frame.tier)

    def expect(self, kind: str, step: int, micro_batch: int, now: float) -> None:
        """Wait for a frame."""
        self.awaited.expect(Identity(self.assignment.session, step, micro_batch, kind), now)

    def answer(self, frame: Frame, content: Contents) -> Frame:
        """A kept answer to a frame, of the same step and micro-batch."""
        at = (frame.step, frame.micro_batch)
        return self.kept.keep(frame_of(self.assignment, content, way=DOWN, at=at))

    def again(self, frame: Frame, want: Want) -> list[Frame]:
        """What was asked for, if it was ever said."""
        kept = self.kept.again(wanted_by(frame, want), epoch=self.assignment.epoch)
        return [] if kept is None else [kept]

    def ask(self, now: float) -> list[Frame]:
        """Requests for what is late."""
        return [
            frame_of(self.assignment, Want(wanted=late.kind), way=DOWN, at=(late.step, late.micro_batch))
            for late in self.awaited.late(now)
        ]
