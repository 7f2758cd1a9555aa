"""Between messages and packets: which bytes on which topic, in both directions. Pure."""

from iotsplit import chunks
from iotsplit.chunks import Assembler, Head
from iotsplit.errors import MalformedMessageError, UsageError
from iotsplit.messages import (
    Frame,
    Message,
    Score,
    Stuck,
    Update,
    decode_content,
    encode_content,
)
from iotsplit.packet import Packet
from iotsplit.plan import Tier
from iotsplit.states import (
    PROTOCOL_VERSION,
    AdapterChunk,
    AdapterHead,
    AdapterLatest,
    Assignment,
    Birth,
    CheckpointChunk,
    CheckpointHead,
    Command,
    Event,
    Forget,
    Metrics,
    Reply,
    Round,
    State,
    decode_state,
    encode_state,
)
from iotsplit.topics import Route, Topics

RETAINED = (
    Birth,
    Assignment,
    Round,
    AdapterHead,
    AdapterChunk,
    AdapterLatest,
    CheckpointHead,
    CheckpointChunk,
    Forget,
)
AT_MOST_ONCE = (Metrics,)
LEAST_CHUNK_BYTES = chunks.HEADER_BYTES + 1
MAX_STATE_BYTES = 256 * 1024
MAX_MESSAGE_BYTES = 256 * 1024 * 1024
MAX_OPEN_BYTES = 512 * 1024 * 1024

_SINGLE: dict[str, type[Round | Event | Command]] = {
    "round": Round,
    "events": Event,
    "command": Command,
}


BROUGHT = Update | Score | Stuck
"""What is said on the topic of an update; all but updates by devices that hold the whole model."""


class Mailbox:
    """One agent's letters: messages out become packets, packets in become messages.

    Args:
        topics: of the agent's fleet.
        agent: its id.
        chunk_bytes: largest payload of a frame.

    Raises:
        UsageError: chunks of that size would hold next to nothing.
    """

    def __init__(self, topics: Topics, agent: str, *, chunk_bytes: int = chunks.CHUNK_BYTES) -> None:
        if chunk_bytes < LEAST_CHUNK_BYTES:
            raise UsageError(
                f"chunk_bytes {chunk_bytes} is too small", fix=f"use {LEAST_CHUNK_BYTES} or more, such as 61440"
            )
        self.topics = topics
        self._agent = agent
        self._chunk_bytes = chunk_bytes
        self._assembler = Assembler(max_message_bytes=MAX_MESSAGE_BYTES, max_open_bytes=MAX_OPEN_BYTES)

    def outgoing(self, message: Message) -> list[Packet]:
        """The packets that say a message."""
        topic = self.topics.topic_of(message)
        if isinstance(message, Frame):
            head = Head(
                PROTOCOL_VERSION,
                message.device,
                message.tier,
                message.to_tier,
                message.epoch,
                message.step,
                message.micro_batch,
                message.checkpoint,
            )
            body = encode_content(message.content)
            payloads = chunks.cut(body, head, chunk_bytes=self._chunk_bytes)
            return [Packet(topic=topic, payload=payload) for payload in payloads]
        payload = _payload(message)
        qos = 0 if isinstance(message, AT_MOST_ONCE) else 1
        return [Packet(topic=topic, payload=payload, qos=qos, retain=isinstance(message, RETAINED))]

    def incoming(self, packet: Packet) -> Message | None:
        """The message that a packet completes, if it does.

        Raises:
            PeerError: the packet has to be dropped.
        """
        route = self.topics.parse(packet.topic)
        if not packet.payload:
            return None  # a retained message was cleared
        match route:
            case Route("lan" | "wan", (to, sender, session)):
                return self._frame(packet, to=to, sender=sender, session=session)
            case Route("update", (device, session, tier)):
                return self._update(packet, device, session, tier)
            case Route("adapter", words):
                return _adapter(words, packet.payload)
            case Route("checkpoint", (device, name, index)):
                return _checkpoint(device, name, index, packet.payload)
        if len(packet.payload) > MAX_STATE_BYTES:
            raise MalformedMessageError(f"{len(packet.payload)} bytes of {route.first}")
        return _state(route, packet.payload)

    def _frame(self, packet: Packet, *, to: str, sender: str, session: str) -> Frame | None:
        chunk = _read(packet.payload)
        body = self._assembler.add(packet.topic, chunk)
        if body is None:
            return None
        head = chunk.head
        return Frame(
            sender=sender,
            to=to,
            tier=_tier(head.tier),
            to_tier=_tier(head.to_tier),
            device=head.device,
            session=session,
            epoch=head.epoch,
            step=head.step,
            micro_batch=head.micro_batch,
            checkpoint=head.checkpoint,
            content=decode_content(body),
        )

    def _update(self, packet: Packet, device: str, session: str, tier: str) -> Frame | None:
        frame = self._frame(packet, to=self._agent, sender=device, session=session)
        if frame is None:
            return None
        if not isinstance(frame.content, BROUGHT) or frame.device != device or frame.tier != tier:
            raise MalformedMessageError("an update that differs from its topic")
        return frame


def _payload(message: State) -> bytes:
    match message:
        case AdapterChunk() | CheckpointChunk():
            return message.data
        case Forget():
            return b""
    return encode_state(message)


def _read(payload: bytes) -> chunks.Chunk:
    chunk = chunks.read(payload)
    if chunk.head.protocol != PROTOCOL_VERSION:
        raise MalformedMessageError(
            f"protocol version {chunk.head.protocol}, this agent speaks {PROTOCOL_VERSION}"
        )
    return chunk


def _tier(name: str) -> Tier:
    try:
        return Tier(name)
    except ValueError:
        raise MalformedMessageError(f"tier {name!r} is unknown") from None


def _adapter(words: tuple[str, ...], payload: bytes) -> Message:
    if words[-1] in {"latest", "head"} and len(payload) > MAX_STATE_BYTES:
        raise MalformedMessageError(f"{len(payload)} bytes of adapter/{words[-1]}")
    if words == ("latest",):
        return decode_state(payload, AdapterLatest)
    if len(words) != 2 or not words[0].isdecimal():  # noqa: PLR2004 - version and index
        raise MalformedMessageError("topic is unknown")
    if words[1] == "head":
        head = decode_state(payload, AdapterHead)
        if str(head.version) != words[0]:
            raise MalformedMessageError("an adapter head that differs from its topic")
        return head
    if not words[1].isdecimal():
        raise MalformedMessageError("topic is unknown")
    return AdapterChunk(version=int(words[0]), index=int(words[1]), data=payload)


def _checkpoint(device: str, name: str, index: str, payload: bytes) -> Message:
    if index == "head":
        if len(payload) > MAX_STATE_BYTES:
            raise MalformedMessageError(f"{len(payload)} bytes of a checkpoint's head")
        head = decode_state(payload, CheckpointHead)
        if (head.device, head.name) != (device, name):
            raise MalformedMessageError("a checkpoint's head that differs from its topic")
        return head
    if not index.isdecimal():
        raise MalformedMessageError("topic is unknown")
    return CheckpointChunk(device=device, name=name, index=int(index), data=payload)


def _state(route: Route, payload: bytes) -> Message:
    match route:
        case Route("state", (agent,)):
            return _same(agent, decode_state(payload, Birth))
        case Route("metrics", (agent,)):
            return _same(agent, decode_state(payload, Metrics))
        case Route("assign", (device,)):
            assignment = decode_state(payload, Assignment)
            if assignment.device != device:
                raise MalformedMessageError("an assignment that differs from its topic")
            return assignment
        case Route("command", (reply,)):
            answer = decode_state(payload, Reply)
            if answer.id != reply:
                raise MalformedMessageError("a reply that differs from its topic")
            return answer
    return decode_state(payload, _SINGLE[route.first])


def _same(agent: str, message: Birth | Metrics) -> Birth | Metrics:
    if message.agent != agent:
        raise MalformedMessageError("a message of another agent than its topic names")
    return message
