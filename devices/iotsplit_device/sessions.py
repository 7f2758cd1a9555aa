"""What a device does with an assignment: what all sessions have in common. No I/O."""

from collections.abc import Callable, Sequence
from typing import Protocol

from iotsplit.messages import Frame, Want
from iotsplit.plan import Tier
from iotsplit.role import Output
from iotsplit.session import Awaited, Backup, Turns
from iotsplit.settings import TrainingSettings
from iotsplit.states import Assignment
from iotsplit_device.records import Checkpoint
from iotsplit_device.work import DeviceWork


class DeviceSession(Protocol):
    """A session from the device's side."""

    backup: Backup
    awaited: Awaited

    @property
    def busy(self) -> bool:
        """Whether `work` has something to do now."""

    @property
    def next_due(self) -> float:
        """When `ask` has something to say, in the runner's seconds."""

    def begin(self, saved: Sequence[Checkpoint]) -> list[Output]:
        """Start, from the newest of what this device has saved of the session."""

    def ask(self, now: float) -> list[Output]:
        """Ask for what is late."""

    def hurry(self, now: float) -> None:
        """Be quick about what may have been lost with a connection."""

    def reassign(self, assignment: Assignment, now: float) -> list[Output]:
        """Go on at another edge, or end early."""

    def work(self, now: float) -> list[Output]:
        """Do one piece of work."""

    def answer(self, frame: Frame, now: float) -> list[Output]:
        """Take a request for what was sent."""

    def handle(self, frame: Frame, now: float) -> list[Output]:
        """Take a frame that is awaited."""


class Asking:
    """What waits for answers of the session's edge, and asks for those that are late."""

    def __init__(self, assignment: Assignment, settings: TrainingSettings) -> None:
        self.awaited = Awaited()
        self.backup = Backup(assignment, Tier.DEVICE, every=settings.checkpoint_every)

    @property
    def next_due(self) -> float:
        """When something is late, in the runner's seconds."""
        return self.awaited.next_due

    def ask(self, now: float) -> list[Output]:
        """Ask for what is late."""
        return [
            self.backup.send(Want(wanted=late.kind), Tier.EDGE, (late.step, late.micro_batch))
            for late in self.awaited.late(now)
        ]

    def hurry(self, now: float) -> None:
        """Ask for everything at once: it may have been lost with a connection."""
        self.awaited.hurry(now)

    def reassign(self, assignment: Assignment, now: float) -> list[Output]:
        """Go on under another epoch."""
        del now
        self.backup.reassign(assignment)
        return []


NewSession = Callable[[Assignment, TrainingSettings, DeviceWork, Turns], DeviceSession]
"""What begins with an assignment."""
