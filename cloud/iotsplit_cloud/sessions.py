"""One session from the cloud's side: what is waited for, what was answered, what it has brought."""

from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import Any

import msgspec

from iotsplit.errors import TensorRefusedError
from iotsplit.messages import (
    Contents,
    Frame,
    Identity,
    Resume,
    Update,
    Want,
)
from iotsplit.plan import Tier
from iotsplit.session import Awaited, Backup, wanted_by
from iotsplit.settings import TrainingSettings
from iotsplit.states import Assignment, Event, Metrics

Check = Callable[[Tier, Update, Assignment], Update]
"""Decodes an update; a PeerError if its session cannot have made it, or cannot be averaged."""


@dataclass(slots=True, kw_only=True)
class Move:
    """A session on its way to another edge.

    Args:
        edge: that it comes from.
        at: when it was sent on its way, in the runner's seconds.
        step: that the cloud stood at.
        resumed: the step that the new edge began with, once it has said so.
        arrived_at: when it brought the first thing that is new.
    """

    edge: str
    at: float
    step: int
    resumed: int | None = None
    arrived_at: float | None = None


@dataclass(slots=True, kw_only=True)
class CloudSession:
    """The state of a session in the cloud.

    Args:
        step_tokens: loss tokens of the step at hand.
        step_loss: sum of losses of the step at hand.
        losses: mean loss of each finished step.
        progress_at: when the session last brought something new, in the runner's seconds.
        reminded_at: when its assignment was last said again.
        move: set while it goes to another edge.
        unfit: why it has to leave the round; empty if it may stay.
    """

    backup: Backup
    progress_at: float
    awaited: Awaited = field(default_factory=Awaited)
    step_tokens: int = 0
    step_loss: float = 0.0
    tokens: int = 0
    losses: list[float] = field(default_factory=list)
    reminded_at: float = 0.0
    move: Move | None = None
    unfit: str = ""

    @property
    def assignment(self) -> Assignment:
        """The session's assignment as it is now."""
        return self.backup.assignment

    def belongs(self, frame: Frame) -> bool:
        """Whether the frame is of this session's epoch and comes from its edge, or from its device."""
        current = frame.session == self.assignment.session and frame.epoch == self.assignment.epoch
        return current and frame.device == self.assignment.device and frame.sender == self._sender(frame)

    def _sender(self, frame: Frame) -> str | None:
        if isinstance(frame.content, Update):
            return self.assignment.device  # the topic of an update names the device for both tiers
        agents = {Tier.EDGE: self.assignment.edge, Tier.DEVICE: self.assignment.device}
        return agents.get(frame.tier)

    def move_to(self, assignment: Assignment, step: int, now: float) -> None:
        """Go on at another edge."""
        at = self.move.at if self.move else now
        self.move = Move(edge=self.assignment.edge, at=at, step=step)
        self.backup.reassign(assignment)

    def progress(self, now: float) -> None:
        """The session has brought something new."""
        self.progress_at = now
        if self.move is not None and self.move.arrived_at is None:
            self.move.arrived_at = now

    def close_step(self, step: int) -> Metrics:
        """Add up what the step has brought."""
        loss = self.step_loss / self.step_tokens
        self.losses.append(loss)
        self.tokens += self.step_tokens
        return Metrics(
            agent=self.assignment.cloud,
            role=Tier.CLOUD,
            round=self.assignment.round,
            session=self.assignment.session,
            step=step,
            loss=loss,
            tokens=self.step_tokens,
        )

    def expect(self, kind: str, step: int, micro_batch: int, now: float) -> None:
        """Wait for a frame."""
        self.awaited.expect(self.identity(kind, step, micro_batch), now)

    def identity(self, kind: str, step: int, micro_batch: int) -> Identity:
        """The identity of one of the session's frames."""
        return Identity(self.assignment.session, step, micro_batch, kind)

    def answer(self, frame: Frame, content: Contents) -> Frame:
        """A kept answer to a frame, of the same step and micro-batch."""
        return self.backup.keep(content, Tier.EDGE, (frame.step, frame.micro_batch))

    def send(self, content: Contents, frame: Frame) -> Frame:
        """An answer to a frame, of the same step and micro-batch, that nobody will ask for again."""
        return self.backup.send(content, Tier.EDGE, (frame.step, frame.micro_batch))

    def again(self, frame: Frame, want: Want) -> list[Frame]:
        """What was asked for, if it was ever said."""
        kept = self.backup.again(wanted_by(frame, want))
        return [] if kept is None else [kept]

    def check(self, tier: Tier, update: Update, check: Check) -> Update:
        """Decode an update if it is of all that was trained here, and can be averaged.

        Raises:
            PeerError: it is not.
        """
        if update.tokens != self.tokens:
            raise TensorRefusedError(f"an update for {update.tokens} tokens, not {self.tokens}")
        return check(tier, update, self.assignment)

    def resume(self, resume: Resume) -> Frame:
        """Tell the edge where we stand."""
        return self.backup.send(resume, Tier.EDGE)

    def ask(self, now: float, here: Container[Identity] = ()) -> list[Frame]:
        """Requests for what is late and not here."""
        return [
            self.backup.send(Want(wanted=late.kind), Tier.EDGE, (late.step, late.micro_batch))
            for late in self.awaited.late(now, here)
        ]

    def arrival(self) -> list[Event]:
        """The event of a session that has come to its new edge and goes on there."""
        move = self.move
        if move is None or move.arrived_at is None:
            return []
        self.move = None
        detail: dict[str, Any] = {
            "from": move.edge,
            "to": self.assignment.edge,
            "epoch": self.assignment.epoch,
            "steps_replayed": max(0, move.step - (move.step if move.resumed is None else move.resumed)),
            "seconds": round(move.arrived_at - move.at, 3),
        }
        text = msgspec.json.encode(detail).decode()
        return [Event(kind="session_moved", agent=self.assignment.device, detail=text)]


def new_session(assignment: Assignment, settings: TrainingSettings, now: float) -> CloudSession:
    """A session in which nothing has come yet."""
    return CloudSession(backup=Backup(assignment, Tier.CLOUD, every=settings.checkpoint_every), progress_at=now)


def new_sessions(
    assignments: dict[str, Assignment], settings: TrainingSettings, now: float
) -> dict[str, CloudSession]:
    """Sessions by device, in the order of their names."""
    return {
        device: new_session(assignment, settings, now) for device, assignment in sorted(assignments.items())
    }
