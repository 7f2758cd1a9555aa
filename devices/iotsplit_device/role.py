"""The device's role: follow assignments, fetch the adapter version, run the session. No I/O."""

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from iotsplit.cache import Cache, CacheChange, new_cache
from iotsplit.errors import MismatchError
from iotsplit.messages import (
    Frame,
    Message,
    Resume,
    Want,
)
from iotsplit.plan import Tier
from iotsplit.retained import Again, Fetch
from iotsplit.role import Output
from iotsplit.session import Turns
from iotsplit.settings import TrainingSettings
from iotsplit.states import (
    AdapterChunk,
    AdapterHead,
    Assignment,
    Birth,
)
from iotsplit.tensors.exchange import as_metrics
from iotsplit_device.evaluation import Evaluation
from iotsplit_device.federated import WholeEvaluation, WholeTraining
from iotsplit_device.records import Checkpoint
from iotsplit_device.sessions import DeviceSession, NewSession
from iotsplit_device.training import Training
from iotsplit_device.work import DeviceWork

SESSIONS: dict[str, NewSession] = {"train": Training, "evaluate": Evaluation}
"""What a device does for each task of an assignment."""
WHOLE_SESSIONS: dict[str, NewSession] = {"train": WholeTraining, "evaluate": WholeEvaluation}
"""The same of one that holds the whole model."""
LOOK_EVERY_S = 2.0
"""How often a device that cannot join yet looks whether it can."""


class Gathering(Protocol):
    """Data that goes on coming in while the device runs."""

    def hindrance(self) -> str:
        """What the device waits for before it can join; empty if it has enough to learn from."""

    def settle(self, assignment: Assignment) -> None:
        """Fix what a session learns from before it begins; the same each time that it does."""


class DeviceRole:
    """A device: one session at a time, decided by its retained assignment.

    One that gathers its data is offline, and says what it waits for, until it has enough.

    Args:
        birth: what the device says of itself.
        load: makes the part and data ready for these settings; it remembers what it made.
        saved: checkpoints from before this start.
        cached: what it remembered of its samples then.
        gathering: data that comes in while the device runs, if it has such.
    """

    tier = Tier.DEVICE
    finished = False

    def __init__(
        self,
        *,
        birth: Birth,
        load: Callable[[TrainingSettings], DeviceWork],
        saved: Sequence[Checkpoint] = (),
        cached: CacheChange | None = None,
        gathering: Gathering | None = None,
    ) -> None:
        self.agent = birth.agent
        self._gathering = gathering
        problem = gathering.hindrance() if gathering is not None else ""
        self.birth = msgspec.structs.replace(birth, online=False, problem=problem) if problem else birth
        self._looks_at = 0.0
        self._load = load
        self._saved = list(saved)
        self._cached = cached
        self._cache: Cache | None = None
        self._turns = Turns(lambda: self.birth.incarnation)
        self._assignment: Assignment | None = None
        self._fetch: Fetch | None = None
        self._again = Again()
        self._held = ("", b"")  # digest and section of the version fetched last
        self._session: DeviceSession | None = None
        self._work: DeviceWork | None = None

    @property
    def interests(self) -> frozenset[str]:
        """Its assignment, its inbox, and the chunks it misses."""
        missing = self._fetch.interests if self._fetch and not self._again.resting else frozenset()
        return missing | {f"assign/{self.agent}", f"lan/{self.agent}/#"}

    def handle(self, message: Message, now: float) -> list[Output]:
        """Take an assignment, a piece of the adapter, or a frame of the session."""
        match message:
            case Assignment() if not self.birth.online:
                return []  # left from before; the cloud reminds those who come back to a session
            case Assignment(device=self.agent):
                return self._assign(message, now)
            case AdapterHead() | AdapterChunk():
                return self._fetched(message, now)
            case Frame(to=self.agent):
                return self._frame(message, now)
        return []

    def tick(self, now: float) -> list[Output]:
        """Send the next micro-batch, or ask for what is late."""
        if not self.birth.online:
            self._look(now)
            return []
        self._again.tick(now)
        if self._session is None:
            return []
        if self._session.busy:
            return [*self._session.work(now), *self._codec_errors()]
        return self._session.ask(now)

    def next_tick(self, now: float) -> float:
        """At once while there is work."""
        if not self.birth.online:
            return self._looks_at
        if self._session is None:
            return self._again.due
        return now if self._session.busy else self._session.next_due

    def reconnected(self, now: float) -> list[Output]:
        """Ask for what is waited for: it may have been lost with the connection."""
        if self._session is not None:
            self._session.hurry(now)
        return []

    def _look(self, now: float) -> None:
        """Join if there is enough to learn from now, else say what is missing."""
        self._looks_at = now + LOOK_EVERY_S
        problem = self._gathering.hindrance() if self._gathering is not None else ""
        self.birth = msgspec.structs.replace(self.birth, online=not problem, problem=problem)

    def _assign(self, assignment: Assignment, now: float) -> list[Output]:
        earlier = self._assignment
        if earlier is not None and assignment.epoch <= earlier.epoch:
            return []  # a repetition, or what a newer one has replaced
        if assignment.problem:
            raise MismatchError(
                f"the cloud refuses {self.agent}: {assignment.problem}",
                fix="give this agent the model, cut and version of its fleet",
            )
        self._assignment = assignment
        if earlier is not None and assignment.session and assignment.session == earlier.session:
            return self._session.reassign(assignment, now) if self._session is not None else []
        self._session = self._fetch = None
        self._again.end()
        if assignment.task not in SESSIONS or assignment.settings is None:
            return []
        if assignment.adapter == self._held[0]:
            return self._begin(assignment, assignment.settings)
        self._fetch = Fetch(assignment.version, Tier.DEVICE, expected=assignment.adapter)
        self._again.begin(now)
        return []

    def _fetched(self, piece: AdapterHead | AdapterChunk, now: float) -> list[Output]:
        fetch, assignment = self._fetch, self._assignment
        if fetch is None or assignment is None or assignment.settings is None:
            return []
        self._again.begin(now)
        if not fetch.add(piece):
            return []
        self._again.end()
        self._fetch, self._held = None, (assignment.adapter, fetch.body or b"")
        return self._begin(assignment, assignment.settings)

    def _begin(self, assignment: Assignment, settings: TrainingSettings) -> list[Output]:
        if self._gathering is not None:
            self._gathering.settle(assignment)
        work = self._load(settings)
        work.load(self._held[1], assignment.round)
        work.session = assignment.session
        work.cache = self._remember(assignment, settings) if assignment.task == "train" else None
        self._work = work
        frozen, trainable = work.sizes
        self.birth = msgspec.structs.replace(
            self.birth,
            data=work.batches.summary(),
            part_parameters=frozen,
            trainable_parameters=trainable,
        )
        saved = [each for each in self._saved if each.session == assignment.session]
        self._saved = []
        sessions = WHOLE_SESSIONS if settings.federated else SESSIONS
        self._session = sessions[assignment.task](assignment, settings, work, self._turns)
        return self._session.begin(saved)

    def _remember(self, assignment: Assignment, settings: TrainingSettings) -> Cache | None:
        """What the session goes on from of what was sent before."""
        if not settings.cache_bytes:
            return None
        if self._cache is None or not self._cache.fits(settings):
            self._cache = new_cache(self.agent, settings, self._cached)
            self._cached = None
        self._cache.begin(assignment.session, assignment.cache)
        return self._cache

    def _frame(self, frame: Frame, now: float) -> list[Output]:
        session = self._session
        if session is None or frame.session != session.backup.assignment.session:
            return []
        assignment = session.backup.assignment
        who = (frame.sender, frame.tier, frame.device)
        if frame.epoch != assignment.epoch or who != (assignment.edge, Tier.EDGE, self.agent):
            return []  # from before a new assignment, or not from this session's edge
        session.backup.hear(frame)
        if isinstance(frame.content, Want | Resume):
            return session.answer(frame, now)
        if frame.identity not in session.awaited:
            return []  # a repetition
        said = session.handle(frame, now)
        session.awaited.arrived(frame.identity, now)  # only now: a frame that was refused is still awaited
        return [*said, *self._codec_errors()]

    def _codec_errors(self) -> list[Output]:
        if self._work is None or self._assignment is None:
            return []
        errors = self._work.codec_errors()
        return [*as_metrics(errors, agent=self.agent, role=self.tier, round_=self._assignment.round)]
