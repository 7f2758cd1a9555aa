"""What records say: chunks put together, who spoke, and what names it. Pure."""

import re
from collections import OrderedDict
from dataclasses import dataclass

import msgpack

from iotsplit import chunks
from iotsplit.chunks import Assembler, Head
from iotsplit.errors import MalformedMessageError, PeerError
from iotsplit.mailbox import MAX_MESSAGE_BYTES, MAX_OPEN_BYTES
from iotsplit.plan import Tier
from iotsplit.states import EPOCHS_APART, MAX_AGENTS, Assignment, Birth, Round, decode_state
from iotsplit.tape.format import Header, Record
from iotsplit.topics import Topics

_ROOT = re.compile(
    r"(?P<prefix>(?:.+/)?)iotsplit/(?P<fleet>[A-Za-z0-9_-]{1,23})/"
    r"(?:state|round|assign|lan|wan|update|adapter|checkpoint|metrics|events|command|probe)(?:/|\Z)"
)
FRAMES = frozenset({"lan", "wan", "update"})
RETAINED = frozenset({"state", "round", "assign", "adapter", "checkpoint"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """What one record, or the last of several, has said.

    Args:
        record: that completed it.
        first: first word of its topic below the fleet's root; empty for topics of others.
        words: that follow.
        sender: agent id; empty if nobody can tell.
        to: agent id of a frame's receiver.
        session: of a frame or a checkpoint, else empty.
        head: of a frame's chunks.
        body: of a frame before compression, else the payload.
        chunks: records that it came in.
    """

    record: Record
    first: str
    words: tuple[str, ...] = ()
    sender: str = ""
    to: str = ""
    session: str = ""
    head: Head | None = None
    body: bytes = b""
    chunks: int = 1

    @property
    def kind(self) -> str:
        """What a frame's content is, such as ``activation``; of others the first word of the topic."""
        return kind_of(self.body) if self.head is not None else self.first


def kind_of(body: bytes) -> str:
    """The kind of a frame's content; it stands first in its map."""
    unpacker = msgpack.Unpacker(max_buffer_size=0)
    unpacker.feed(body[:64])
    try:
        unpacker.read_map_header()
        key, kind = unpacker.unpack(), unpacker.unpack()
    except (ValueError, msgpack.UnpackException):
        return "unknown"
    return str(kind) if key == "kind" else "unknown"


def is_retained(below_root: str) -> bool:
    """Whether what is said there is retained: a broker does not tell those who have subscribed already."""
    return below_root.partition("/")[0] in RETAINED


def find_topics(header: Header, topic: str) -> Topics | None:
    """The fleet that a tape is of: what its header says, or else what a topic looks like."""
    if header.fleet:
        return Topics(header.fleet, header.prefix)
    found = _ROOT.match(topic)
    return Topics(found["fleet"], found["prefix"]) if found is not None else None


class Listener:
    """Understands what is said in one fleet.

    Args:
        topics: of the fleet.
    """

    def __init__(self, topics: Topics) -> None:
        self.topics = topics
        self.unreadable = 0
        """Records below the root that are not of the protocol."""
        self._assembler = Assembler(max_message_bytes=MAX_MESSAGE_BYTES, max_open_bytes=MAX_OPEN_BYTES)
        self._edges: OrderedDict[tuple[str, int], str] = OrderedDict()  # by device and epoch
        self._rounds: OrderedDict[str, int] = OrderedDict()  # by session
        self._turns: OrderedDict[tuple[str, int], Assignment] = (
            OrderedDict()
        )  # by device and name's first number
        self.cloud = ""
        """Id of the fleet's cloud, once it is known."""
        self.round = 0
        """The round that the fleet is in."""

    def take(self, record: Record) -> Letter | None:
        """The letter that a record completes; None while chunks are missing or if it is not of the protocol."""
        root = self.topics.root
        if not record.topic.startswith(root):
            return Letter(record=record, first="", body=record.payload)
        first, *words = record.topic[len(root) :].split("/")
        if first == "probe":
            return Letter(record=record, first=first, words=tuple(words), sender=words[0] if words else "")
        try:
            route = self.topics.parse(record.topic)
            if first in FRAMES and record.payload:
                return self._frame(record, first, route.words)
            return self._state(record, first, route.words)
        except PeerError:
            self.unreadable += 1
            return None

    def learn(self, other: "Listener") -> None:
        """Know who serves whom as another listener of the same fleet does."""
        self._edges, self._turns, self.cloud = other._edges, other._turns, other.cloud  # noqa: SLF001 - of its kind

    def edge_of(self, device: str, epoch: int) -> str:
        """The edge of a device's assignment; empty if it was not heard."""
        return self._edges.get((device, epoch), "")

    def round_of(self, letter: Letter) -> int:
        """The round that a letter belongs to: that of its session, or that in which it was said."""
        return self._rounds.get(letter.session, self.round)

    def _frame(self, record: Record, first: str, words: tuple[str, ...]) -> Letter | None:
        chunk = chunks.read(record.payload)
        body = self._assembler.add(record.topic, chunk)
        if body is None:
            return None
        if first == "update":
            device, session, tier = words
            to = self.cloud
            sender = device if tier == Tier.DEVICE else self.edge_of(device, chunk.head.epoch)
        else:
            to, sender, session = words
        return Letter(
            record=record,
            first=first,
            words=words,
            sender=sender,
            to=to,
            session=session,
            head=chunk.head,
            body=bytes(body),
            chunks=chunk.total,
        )

    def _state(self, record: Record, first: str, words: tuple[str, ...]) -> Letter:
        sender = session = ""
        match first, words:
            case "state", (agent,):
                sender = agent
                self._birth(record.payload)
            case "metrics", (agent,):
                sender = agent
            case "assign", _:
                sender = self._assignment(record.payload)
            case "checkpoint", (device, name, _):
                sender, session = self._keeper(device, name)
                sender = sender if record.payload else ""  # whoever has the device now clears it
            case "round", _:
                sender = self.cloud
                self.round = decode_state(record.payload, Round).round if record.payload else self.round
            case (("adapter" | "events"), _) | ("command", (_,)):
                sender = self.cloud
        return Letter(
            record=record, first=first, words=words, sender=sender, session=session, body=record.payload
        )

    def _birth(self, payload: bytes) -> None:
        birth = decode_state(payload, Birth) if payload else None
        if birth is not None and birth.role is Tier.CLOUD:
            self.cloud = birth.agent

    def _assignment(self, payload: bytes) -> str:
        if not payload:
            return self.cloud
        assignment = decode_state(payload, Assignment)
        if assignment.edge:
            self._edges[assignment.device, assignment.epoch] = assignment.edge
            self.cloud = assignment.cloud or self.cloud
            self._rounds[assignment.session] = assignment.round
            self._turns[assignment.device, assignment.epoch % EPOCHS_APART] = assignment
        for held in (self._rounds, self._edges, self._turns):
            if len(held) > MAX_AGENTS:
                held.popitem(last=False)
        return self.cloud

    def _keeper(self, device: str, name: str) -> tuple[str, str]:
        """Edge and session of a device's checkpoint; empty if its assignment was not heard."""
        turn = name.partition(".")[0]
        if not turn.isdecimal():
            raise MalformedMessageError(f"checkpoint {name}")
        assignment = self._turns.get((device, int(turn)))
        return (assignment.edge, assignment.session) if assignment is not None else ("", "")
