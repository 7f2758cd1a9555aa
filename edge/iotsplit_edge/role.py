"""The edge's role: serve the sessions that are assigned to it, all on one frozen part. No I/O."""

import contextlib
from collections.abc import Callable

import msgspec

from iotsplit.errors import MalformedMessageError, MismatchError, PeerError
from iotsplit.messages import MAX_AGENTS, AdapterChunk, AdapterHead, Assignment, Birth, Frame, Message
from iotsplit.plan import Tier
from iotsplit.retained import Fetch
from iotsplit.role import Output
from iotsplit.settings import TrainingSettings
from iotsplit_edge.session import MAX_EARLY, EdgeSession
from iotsplit_edge.work import EdgeWork

NEVER = float("inf")
TASKS = frozenset({"train", "evaluate"})


class EdgeRole:
    """An edge: a session for each device whose retained assignment names it.

    Args:
        birth: what the edge says of itself.
        load: makes a session's work from settings and the edge's section of an adapter version.
    """

    tier = Tier.EDGE
    finished = False

    def __init__(self, *, birth: Birth, load: Callable[[TrainingSettings, bytes], EdgeWork]) -> None:
        self.agent = birth.agent
        self.birth = birth
        self._load = load
        self._epochs: dict[str, int] = {}  # of every device's newest assignment
        self._assignments: dict[str, Assignment] = {}  # of devices that are mine
        self._sessions: dict[str, EdgeSession] = {}  # by device, once the adapter is here
        self._fetches: dict[str, Fetch] = {}  # by the version's digest
        self._early: dict[str, list[Frame]] = {}  # by device, until the adapter is here

    @property
    def interests(self) -> frozenset[str]:
        """All assignments, both inboxes, and the chunks it misses."""
        missing = [topic for fetch in self._fetches.values() for topic in fetch.interests]
        return frozenset({"assign/+", f"lan/{self.agent}/#", f"wan/{self.agent}/#", *missing})

    def handle(self, message: Message, now: float) -> list[Output]:
        """Take an assignment, a piece of an adapter version, or a frame of a session."""
        del now
        match message:
            case Assignment():
                return self._assign(message)
            case AdapterHead() | AdapterChunk():
                return self._fetched(message)
            case Frame(to=self.agent):
                return self._frame(message)
        return []

    def tick(self, now: float) -> list[Output]:
        """Nothing: the ends of a session notice what is late."""
        del now
        return []

    def next_tick(self, now: float) -> float:
        """Never."""
        del now
        return NEVER

    def _assign(self, assignment: Assignment) -> list[Output]:
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
        self._assignments.pop(device, None)
        self._sessions.pop(device, None)
        self._early.pop(device, None)
        if assignment.edge == self.agent and assignment.task in TASKS:
            self._assignments[device] = assignment
            if assignment.adapter not in self._fetches:
                self._fetches[assignment.adapter] = Fetch(
                    assignment.version, Tier.EDGE, expected=assignment.adapter
                )
        self._forget_versions()
        return self._begin_sessions()

    def _forget_versions(self) -> None:
        used = {assignment.adapter for assignment in self._assignments.values()}
        self._fetches = {digest: fetch for digest, fetch in self._fetches.items() if digest in used}

    def _fetched(self, piece: AdapterHead | AdapterChunk) -> list[Output]:
        whole = [fetch.add(piece) for fetch in self._fetches.values()]
        return self._begin_sessions() if any(whole) else []

    def _begin_sessions(self) -> list[Output]:
        said: list[Output] = []
        for device, assignment in self._assignments.items():
            body = self._fetches[assignment.adapter].body
            if device in self._sessions or body is None or assignment.settings is None:
                continue
            work = self._load(assignment.settings, body)
            frozen, trainable = work.sizes
            self.birth = msgspec.structs.replace(
                self.birth, part_parameters=frozen, trainable_parameters=trainable
            )
            self._sessions[device] = EdgeSession(assignment, assignment.settings, work)
            for frame in self._early.pop(device, []):
                # One bad frame must not cost the others: it will be asked for, and refused by name then.
                with contextlib.suppress(PeerError):
                    said += self._sessions[device].handle(frame)
        return said

    def _frame(self, frame: Frame) -> list[Output]:
        assignment = self._assignments.get(frame.device)
        if assignment is None or frame.session != assignment.session:
            return []
        neighbours = {Tier.DEVICE: assignment.device, Tier.CLOUD: assignment.cloud}
        if frame.epoch != assignment.epoch or neighbours.get(frame.tier) != frame.sender:
            return []  # from before a new assignment, or not from this session's neighbours
        session = self._sessions.get(frame.device)
        if session is not None:
            return session.handle(frame)
        early = self._early.setdefault(frame.device, [])
        if len(early) < MAX_EARLY:
            early.append(frame)
        return []
