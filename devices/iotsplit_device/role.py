"""The device's role: follow assignments, fetch the adapter version, run the session. No I/O."""

from collections.abc import Callable

import msgspec

from iotsplit.errors import MismatchError
from iotsplit.messages import (
    AdapterChunk,
    AdapterHead,
    Assignment,
    Birth,
    Frame,
    Message,
    Want,
    frame_of,
)
from iotsplit.plan import Tier
from iotsplit.retained import Fetch
from iotsplit.role import Output
from iotsplit.session import wanted_by
from iotsplit.settings import TrainingSettings
from iotsplit_device.sessions import SESSIONS, UP, DeviceSession
from iotsplit_device.work import DeviceWork

NEVER = float("inf")


class DeviceRole:
    """A device: one session at a time, decided by its retained assignment.

    Args:
        birth: what the device says of itself.
        load: makes the part and data ready for these settings; it remembers what it made.
    """

    tier = Tier.DEVICE
    finished = False

    def __init__(self, *, birth: Birth, load: Callable[[TrainingSettings], DeviceWork]) -> None:
        self.agent = birth.agent
        self.birth = birth
        self._load = load
        self._assignment: Assignment | None = None
        self._fetch: Fetch | None = None
        self._held = ("", b"")  # digest and section of the version fetched last
        self._session: DeviceSession | None = None

    @property
    def interests(self) -> frozenset[str]:
        """Its assignment, its inbox, and the chunks it misses."""
        missing = self._fetch.interests if self._fetch else frozenset()
        return missing | {f"assign/{self.agent}", f"lan/{self.agent}/#"}

    def handle(self, message: Message, now: float) -> list[Output]:
        """Take an assignment, a piece of the adapter, or a frame of the session."""
        match message:
            case Assignment(device=self.agent):
                return self._assign(message)
            case AdapterHead() | AdapterChunk():
                return self._fetched(message)
            case Frame(to=self.agent):
                return self._frame(message, now)
        return []

    def tick(self, now: float) -> list[Output]:
        """Send the next micro-batch, or ask for what is late."""
        if self._session is None:
            return []
        if self._session.busy:
            return self._session.work(now)
        return [
            frame_of(
                self._session.assignment,
                Want(wanted=late.kind),
                way=UP,
                at=(late.step, late.micro_batch),
            )
            for late in self._session.awaited.late(now)
        ]

    def next_tick(self, now: float) -> float:
        """At once while there is work."""
        if self._session is None:
            return NEVER
        return now if self._session.busy else self._session.awaited.next_due

    def _assign(self, assignment: Assignment) -> list[Output]:
        if self._assignment is not None and assignment.epoch <= self._assignment.epoch:
            return []  # a repetition, or what a newer one has replaced
        if assignment.problem:
            raise MismatchError(
                f"the cloud refuses {self.agent}: {assignment.problem}",
                fix="give this agent the model, cut and version of its fleet",
            )
        self._assignment = assignment
        self._session = self._fetch = None
        if assignment.task not in SESSIONS or assignment.settings is None:
            return []
        if assignment.adapter == self._held[0]:
            self._begin(assignment, assignment.settings)
        else:
            self._fetch = Fetch(assignment.version, Tier.DEVICE, expected=assignment.adapter)
        return []

    def _fetched(self, piece: AdapterHead | AdapterChunk) -> list[Output]:
        fetch, assignment = self._fetch, self._assignment
        if fetch is None or assignment is None or assignment.settings is None or not fetch.add(piece):
            return []
        self._fetch, self._held = None, (assignment.adapter, fetch.body or b"")
        self._begin(assignment, assignment.settings)
        return []

    def _begin(self, assignment: Assignment, settings: TrainingSettings) -> None:
        work = self._load(settings)
        work.load(self._held[1])
        frozen, trainable = work.sizes
        self.birth = msgspec.structs.replace(
            self.birth,
            data=work.batches.summary(),
            part_parameters=frozen,
            trainable_parameters=trainable,
        )
        self._session = SESSIONS[assignment.task](assignment, settings, work)

    def _frame(self, frame: Frame, now: float) -> list[Output]:
        session = self._session
        if session is None or frame.session != session.assignment.session:
            return []
        who = (frame.sender, frame.tier, frame.device)
        if frame.epoch != session.assignment.epoch or who != (session.assignment.edge, Tier.EDGE, self.agent):
            return []  # from before a new assignment, or not from this session's edge
        if isinstance(frame.content, Want):
            again = session.kept.again(wanted_by(frame, frame.content), epoch=frame.epoch)
            return [] if again is None else [again]
        if frame.identity not in session.awaited:
            return []  # a repetition
        said = session.handle(frame, now)
        session.awaited.arrived(frame.identity, now)  # only now: a frame that was refused is still awaited
        return said
