"""A role with its mailbox: packets and times in, packets out. Pure; a runner or a test drives it."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

import msgspec

from iotsplit.errors import PeerError
from iotsplit.mailbox import Mailbox
from iotsplit.messages import Frame, Message
from iotsplit.packet import Packet
from iotsplit.role import Local, Output, Refused, Role
from iotsplit.states import Assignment, Birth, Event, Metrics

Sink = Callable[[Local | Metrics | Event], None]
"""Takes what a role keeps on its own machine, and its own metrics and events."""

MAX_SESSIONS_COUNTED = 4096
STATE_EVERY = 6
"""Heartbeats between two sayings of an agent's state: one that was lost on its way is made up for."""


def nowhere(kept: Local | Metrics | Event) -> None:
    """A sink for agents that keep nothing."""
    del kept


def unheard(origin: str, reason: str) -> None:
    """Complains to nobody."""
    del origin, reason


class Agent:
    """Drives one role.

    Args:
        role: the state machine.
        mailbox: its letters.
        sink: where what it keeps goes.
        complain: told once of each kind of packet that is dropped: where it came from, and why.
        wall: the time of day in seconds, only for stamps that people read.
    """

    def __init__(
        self,
        role: Role,
        mailbox: Mailbox,
        *,
        sink: Sink = nowhere,
        complain: Callable[[str, str], None] = unheard,
        wall: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.role = role
        self.dropped = 0
        self._mailbox = mailbox
        self._sink = sink
        self._complain = complain
        self._wall = wall
        self._complained: set[tuple[str, str]] = set()
        self._sent: Counter[str] = Counter()
        self._received: Counter[str] = Counter()
        self._by_session: dict[str, tuple[Counter[str], Counter[str]]] = defaultdict(
            lambda: (Counter(), Counter())
        )
        self._assigned: dict[str, Assignment] = {}  # the newest that came by, by device
        self._said_birth: Birth | None = None
        self._heartbeats = 0

    @property
    def filters(self) -> frozenset[str]:
        """Topic filters that the agent needs now."""
        root = self._mailbox.topics.root
        return frozenset(root + interest for interest in self.role.interests)

    @property
    def last_will(self) -> Packet:
        """What the broker says when the agent is gone."""
        birth = msgspec.structs.replace(self.role.birth, online=False, problem="")
        return self._mailbox.outgoing(birth)[0]

    @property
    def state_topic(self) -> str:
        """Where the agent says its state, and the broker its last will."""
        return self._mailbox.topics.topic_of(self.role.birth)

    @property
    def probe_topic(self) -> str:
        """Where the agent sends something to itself, to learn what the broker passes on."""
        return f"{self._mailbox.topics.root}probe/{self.role.agent}"

    def renew(self, incarnation: int) -> None:
        """Become a later incarnation."""
        self.role.birth = msgspec.structs.replace(self.role.birth, incarnation=incarnation)

    def birth(self, *, renew: bool = False) -> list[Packet]:
        """The agent's state if it has changed since it was said, or to be said again after a reconnect."""
        birth = self.role.birth
        if birth == self._said_birth and not renew:
            return []
        self._said_birth = birth
        return self._mailbox.outgoing(birth)

    def farewell(self, problem: str = "") -> list[Packet]:
        """The state of an agent that leaves on its own, with the reason."""
        return self._mailbox.outgoing(msgspec.structs.replace(self.role.birth, online=False, problem=problem))

    def decode(self, packet: Packet) -> Message | None:
        """The message that a packet completes; what is not acceptable is counted, logged once, dropped."""
        try:
            message = self._mailbox.incoming(packet)
            first = self._mailbox.topics.parse(packet.topic)
        except PeerError as error:
            self.drop(packet.topic, error)
            return None
        self._received[first.first] += len(packet.payload)
        if first.first in ("lan", "wan"):
            self._session(first.words[2])[1][first.first] += len(packet.payload)
        if isinstance(message, Assignment):
            self._forget_earlier(message)
        return message

    def drop(self, origin: str, error: PeerError) -> None:
        """Count what is dropped, and complain about it once."""
        self.dropped += 1
        key = (origin, type(error).__name__)
        if key not in self._complained and len(self._complained) < MAX_SESSIONS_COUNTED:
            self._complained.add(key)
            self._complain(origin, str(error))

    def handle(self, message: Message, now: float) -> Sequence[Output]:
        """Give a message to the role."""
        try:
            return self.role.handle(message, now)
        except PeerError as error:
            self.drop(self._mailbox.topics.topic_of(message), error)
            return []

    def tick(self, now: float) -> Sequence[Output]:
        """Let the role do what is due."""
        try:
            return self.role.tick(now)
        except PeerError as error:
            self.drop("what was held", error)
            return []

    def encode(self, outputs: Iterable[Output]) -> list[Packet]:
        """Keep what is local, stamp what people read, and make packets of the rest."""
        packets = []
        for output in outputs:
            if isinstance(output, Refused):
                self.drop(self._mailbox.topics.topic_of(output.message), output.error)
                continue
            if isinstance(output, Local):
                self._sink(output)
                continue
            message = self._stamped(output)
            if isinstance(message, Metrics | Event):
                self._sink(message)
            if isinstance(message, Assignment):
                self._forget_earlier(message)
            for packet in self._mailbox.outgoing(message):
                self._count(message, packet)
                packets.append(packet)
        return packets

    def heartbeat(self, peak_rss_bytes: int, busy_s: float = 0.0) -> list[Packet]:
        """A sign of life with what the agent has used so far, and now and then its state once more."""
        self._heartbeats += 1
        again = self.birth(renew=True) if self._heartbeats % STATE_EVERY == 0 else []
        return again + self.encode(
            [
                Metrics(
                    agent=self.role.agent,
                    role=self.role.tier,
                    sent_bytes=dict(self._sent),
                    received_bytes=dict(self._received),
                    dropped=self.dropped,
                    peak_rss_bytes=peak_rss_bytes,
                    busy_s=busy_s,
                )
            ]
        )

    def _stamped(self, message: Message) -> Message:
        if isinstance(message, Event):
            return msgspec.structs.replace(message, time=self._wall())
        if not isinstance(message, Metrics):
            return message
        message = msgspec.structs.replace(message, time=self._wall())
        if message.session is None:
            return message
        sent, received = self._session(message.session)
        return msgspec.structs.replace(message, sent_bytes=dict(sent), received_bytes=dict(received))

    def _count(self, message: Message, packet: Packet) -> None:
        first = self._mailbox.topics.parse(packet.topic).first
        self._sent[first] += len(packet.payload)
        if isinstance(message, Frame) and first != "update":
            self._session(message.session)[0][first] += len(packet.payload)

    def _forget_earlier(self, assignment: Assignment) -> None:
        """Count no more for what the device did before."""
        earlier = self._assigned.get(assignment.device)
        if earlier is None and len(self._assigned) >= MAX_SESSIONS_COUNTED:
            return
        if earlier is None or assignment.epoch > earlier.epoch:
            self._assigned[assignment.device] = assignment
            if earlier is not None and earlier.session != assignment.session:
                self._by_session.pop(earlier.session, None)

    def _session(self, session: str) -> tuple[Counter[str], Counter[str]]:
        if len(self._by_session) >= MAX_SESSIONS_COUNTED and session not in self._by_session:
            del self._by_session[next(iter(self._by_session))]
        return self._by_session[session]
