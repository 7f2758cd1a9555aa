"""The edge's role: serve the sessions that are assigned to it, all on one frozen part. No I/O."""

from collections.abc import Callable, Sequence

import msgspec

from iotsplit.chunks import CHUNK_BYTES
from iotsplit.errors import MalformedMessageError, MismatchError, PeerError
from iotsplit.messages import Frame, Message, Stuck
from iotsplit.plan import Tier
from iotsplit.retained import Again, Fetch, Shelf, clear_checkpoint
from iotsplit.role import Output, Refused
from iotsplit.session import Backup, Turns, steps_kept
from iotsplit.settings import TrainingSettings
from iotsplit.states import (
    MAX_AGENTS,
    AdapterChunk,
    AdapterHead,
    Assignment,
    Birth,
    CheckpointChunk,
    CheckpointHead,
)
from iotsplit.tensors.exchange import as_metrics
from iotsplit_edge.evaluation import Evaluation
from iotsplit_edge.remembering import Caches, lately, new_caches
from iotsplit_edge.session import EdgeSession, Training
from iotsplit_edge.start import Start
from iotsplit_edge.work import EdgeWork

NEVER = float("inf")
TASKS = frozenset({"train", "evaluate"})


class EdgeRole:
    """An edge: a session for each device whose retained assignment names it.

    Args:
        birth: what the edge says of itself.
        load: makes a session's work from settings, the edge's section of an adapter version, and the round.
        chunk_bytes: largest retained message.
    """

    tier = Tier.EDGE
    finished = False

    def __init__(
        self,
        *,
        birth: Birth,
        load: Callable[[TrainingSettings, bytes, int], EdgeWork],
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self.agent = birth.agent
        self.birth = birth
        self._load = load
        self._chunk_bytes = chunk_bytes
        self._turns = Turns(lambda: self.birth.incarnation)
        self._epochs: dict[str, int] = {}  # of every device's newest assignment
        self._starts: dict[str, Start] = {}  # by device that is mine, until its session begins
        self._sessions: dict[str, EdgeSession] = {}  # by device
        self._fetches: dict[str, Fetch] = {}  # by the version's digest
        self._early: dict[str, list[Frame]] = {}  # by device, until its session begins
        self._caches: dict[str, Caches] = {}  # by device
        self._shelf = Shelf()
        self._again = Again()

    @property
    def interests(self) -> frozenset[str]:
        """All assignments, both inboxes, and what it looks for."""
        looking: list[Fetch | Start] = [*self._fetches.values(), *self._starts.values()]
        missing = [topic for each in looking for topic in each.interests if not self._again.resting]
        own = {"assign/+", f"lan/{self.agent}/#", f"wan/{self.agent}/#"}
        return frozenset({*own, *missing, *self._shelf.interests})

    def handle(self, message: Message, now: float) -> list[Output]:
        """Take an assignment, a piece of an adapter version or of a checkpoint, or a frame of a session."""
        match message:
            case Assignment():
                return self._assign(message, now)
            case AdapterHead() | AdapterChunk():
                self._again.begin(now)
                whole = [fetch.add(message) for fetch in self._fetches.values()]
                return self._begin_sessions(now) if any(whole) else []
            case CheckpointHead() | CheckpointChunk():
                return self._checkpoint(message, now)
            case Frame(to=self.agent):
                return self._frame(message, now)
        return []

    def tick(self, now: float) -> list[Output]:
        """Ask for what is late, and give up what cannot be found."""
        if self._starts:
            self._again.tick(now)
        owned = self._owned()
        said: list[Output] = [each for path in self._shelf.lost(now) for each in owned.get(path, ())]
        for session in self._sessions.values():
            said += session.ask(now)
        said += [self._stuck(start) for start in self._starts.values() if start.is_stuck(now)]
        return [*said, *self._begin_sessions(now)]

    def next_tick(self, now: float) -> float:
        """When something is late."""
        del now
        late = [session.awaited.next_due for session in self._sessions.values()]
        late += [start.due for start in self._starts.values() if start.takes_over]
        late += [self._again.due] if self._starts else []
        return min([*late, self._shelf.next_due], default=NEVER)

    def reconnected(self, now: float) -> list[Output]:
        """Look whether the broker still has our checkpoints, and ask for what is waited for."""
        self._shelf.look({path: said[-1] for path, said in self._owned().items()}, now)
        for session in self._sessions.values():
            session.awaited.hurry(now)
        return []

    # --- assignments

    def _assign(self, assignment: Assignment, now: float) -> list[Output]:
        device = assignment.device
        if assignment.epoch <= self._epochs.get(device, -1):
            return []  # a repetition, or what a newer one has replaced
        if device not in self._epochs and len(self._epochs) >= MAX_AGENTS:
            raise MalformedMessageError(f"assignments of more than {MAX_AGENTS} agents")
        self._epochs[device] = assignment.epoch
        if device == self.agent and assignment.problem:
            raise MismatchError(
                f"the cloud refuses {self.agent}: {assignment.problem}",
                fix="give this agent the model, cut and version of its fleet",
            )
        mine = (assignment.edge, assignment.incarnation) == (self.agent, self.birth.incarnation)
        session = self._sessions.get(device)
        if mine and assignment.ends_at and session and session.backup.assignment.session == assignment.session:
            return self._look_back(session, session.end_early(assignment), now)
        said = self._end(device, goes_on=assignment.session)
        if not mine and assignment.task == "train":
            self._caches.pop(device, None)  # another edge goes on from here
        if mine and assignment.task in TASKS and assignment.settings is not None:
            self._look_for_start(assignment, now)
        self._forget_versions()
        return [*said, *self._begin_sessions(now)]

    def _end(self, device: str, *, goes_on: str) -> list[Output]:
        """End what we have of a device; its checkpoints stay if the session goes on elsewhere."""
        self._starts.pop(device, None)
        self._early.pop(device, None)
        session = self._sessions.pop(device, None)
        if session is None:
            return []
        over = session.backup.assignment.session != goes_on
        return session.clear() if over and isinstance(session, Training) else []

    def _look_for_start(self, assignment: Assignment, now: float, *, at_most: int | None = None) -> None:
        self._again.begin(now)
        self._starts[assignment.device] = Start(assignment, now=now, at_most=at_most)
        if assignment.adapter not in self._fetches:
            self._fetches[assignment.adapter] = Fetch(
                assignment.version, Tier.EDGE, expected=assignment.adapter
            )

    def _forget_versions(self) -> None:
        used = {start.assignment.adapter for start in self._starts.values()}
        used |= {session.backup.assignment.adapter for session in self._sessions.values()}
        self._fetches = {digest: fetch for digest, fetch in self._fetches.items() if digest in used}

    # --- how a session begins

    def _checkpoint(self, piece: CheckpointHead | CheckpointChunk, now: float) -> list[Output]:
        if isinstance(piece, CheckpointHead):
            self._shelf.seen(f"{piece.path}/head", piece)
        start = self._starts.get(piece.device)
        if start is None:
            return []
        self._again.begin(now)
        if isinstance(piece, CheckpointHead):
            start.take_head(piece, now)
        else:
            start.take_chunk(piece, now)
        return self._begin_sessions(now)

    def _begin_sessions(self, now: float) -> list[Output]:
        said: list[Output] = []
        for device, start in list(self._starts.items()):
            version = self._fetches[start.assignment.adapter].body
            ready = start.body is not None or start.may_begin_anew
            if version is not None and ready:
                said += self._begin(device, start, version, now)
        return said

    def _begin(self, device: str, start: Start, version: bytes, now: float) -> list[Output]:
        assignment = start.assignment
        settings = assignment.settings
        assert settings is not None  # noqa: S101 - else there is no start
        work = self._load(settings, version, assignment.round)
        work.session = assignment.session
        if start.body is not None:
            try:
                work.restore(start.body)
            except PeerError as error:
                unusable = start.chosen
                assert unusable is not None  # noqa: S101 - the body is its own
                start.give_up_chosen()
                return [Refused(message=unusable, error=error)]
        del self._starts[device]
        frozen, trainable = work.sizes
        self.birth = msgspec.structs.replace(self.birth, part_parameters=frozen, trainable_parameters=trainable)
        session = self._sessions[device] = self._session(start, settings, work)
        said: list[Output] = [message for head in start.foreign.values() for message in clear_checkpoint(head)]
        said += session.begin(now)
        for frame in self._early.pop(device, []):
            if self._sessions.get(device) is not session:  # it has to go back further
                self._early.setdefault(device, []).append(frame)
                continue
            try:
                said += self._give(session, frame, now)
            except PeerError as error:
                said.append(Refused(message=frame, error=error))
        return said

    def _session(self, start: Start, settings: TrainingSettings, work: EdgeWork) -> EdgeSession:
        if start.assignment.task == "evaluate":
            return Evaluation(start.assignment, settings, work)
        work.caches = self._remember(start.assignment, settings)
        return Training(start, settings, work, turns=self._turns, chunk_bytes=self._chunk_bytes)

    def _remember(self, assignment: Assignment, settings: TrainingSettings) -> Caches | None:
        """What the session goes on from of what was sent before."""
        if not settings.cache_bytes:
            return None
        caches = self._caches.get(assignment.device)
        if caches is None or not caches.below.fits(settings):
            caches = self._caches[assignment.device] = new_caches(assignment.device, settings)
        caches.begin(assignment.session, assignment.cache, assignment.round)
        self._caches = lately(self._caches, assignment.round)
        return caches

    def _stuck(self, start: Start) -> Frame:
        backup = Backup(start.assignment, Tier.EDGE, every=1)
        reason = f"no checkpoint of {start.assignment.device} is left on the broker"
        return backup.send(Stuck(reason=reason), Tier.CLOUD)

    def _owned(self) -> dict[str, Sequence[Message]]:
        """What is ours on the broker: messages by the path of their head."""
        return {path: said for each in self._sessions.values() for path, said in each.owned().items()}

    # --- frames

    def _frame(self, frame: Frame, now: float) -> list[Output]:
        session = self._sessions.get(frame.device)
        start = self._starts.get(frame.device)
        if session is not None:
            assignment = session.backup.assignment
        elif start is not None:
            assignment = start.assignment
        else:
            return []
        neighbours = {Tier.DEVICE: assignment.device, Tier.CLOUD: assignment.cloud}
        current = (frame.session, frame.epoch) == (assignment.session, assignment.epoch)
        if not current or neighbours.get(frame.tier) != frame.sender:
            return []  # from before a new assignment, or not from this session's neighbours
        if session is not None:
            return self._give(session, frame, now)
        early = self._early.setdefault(frame.device, [])
        settings = assignment.settings
        assert settings is not None  # noqa: S101 - else there is no start
        if len(early) < 2 * steps_kept(settings.checkpoint_every) * settings.micro_batches:
            early.append(frame)
        return []

    def _give(self, session: EdgeSession, frame: Frame, now: float) -> list[Output]:
        session.backup.hear(frame)
        return self._look_back(session, session.handle(frame, now), now)

    def _look_back(self, session: EdgeSession, said: list[Output], now: float) -> list[Output]:
        """Tell what the codec has lost, and look for an older state if that is what the session needs."""
        assignment = session.backup.assignment
        errors = session.codec_errors()
        said += as_metrics(errors, agent=self.agent, role=self.tier, round_=assignment.round)
        if session.rewind_to is None:
            return said
        self._end(assignment.device, goes_on=assignment.session)
        self._look_for_start(assignment, now, at_most=session.rewind_to)
        return [*said, *self._begin_sessions(now)]
