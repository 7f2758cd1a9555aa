"""What agents say to each other: every message of the bus as a frozen record.

State and control are JSON, so that ``mosquitto_sub`` shows readable text; frames between the tiers are
msgpack. Both are validated here, once, on decoding: nothing past this module sees a dict.
"""

from typing import Annotated, Any, TypeVar

import msgpack
import msgspec

from iotsplit.errors import MalformedMessageError, UsageError
from iotsplit.plan import Tier
from iotsplit.settings import TrainingSettings

PROTOCOL_VERSION = 1
MAX_AGENTS = 4096
"""Most agents that anybody remembers; names cost nothing, so others must not decide how many there are."""

Positive = Annotated[int, msgspec.Meta(gt=0)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]
Finite = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]  # one NaN would spoil every sum after it

WORD = "[A-Za-z0-9_.-]{1,64}"
"""What may stand between two slashes of a topic."""

# What we are told becomes part of a topic: a slash or a wildcard in it would stop who answers.
Word = Annotated[str, msgspec.Meta(pattern=rf"^{WORD}\Z")]
WordOrNone = Annotated[str, msgspec.Meta(pattern=rf"^({WORD})?\Z")]


class PackedTensor(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor as bytes: `scheme` names the wire format (see docs/PROTOCOL.md), `shape` the dimensions."""

    scheme: str
    shape: tuple[int, ...]
    data: bytes


class Content(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """Base of what a frame carries; the tag is the `kind` of its identity."""


class Activation(Content, frozen=True, kw_only=True, tag="activation"):
    """Hidden states that one tier hands upwards.

    Args:
        hidden: (batch, time, width), output of the sender's last layer.
        mask: (batch, time) of 0 and 1, 1 where there is a token.
        labels: (batch, time) next-token ids, -100 where there is no loss; absent if labels stay.
        step_tokens: loss tokens of the whole step, over all its micro-batches.
        steps: steps of the whole session.
    """

    hidden: PackedTensor
    mask: PackedTensor
    labels: PackedTensor | None = None
    step_tokens: Positive
    steps: Positive


class Gradient(Content, frozen=True, kw_only=True, tag="gradient"):
    """Gradient of the session's loss by the hidden states that came up."""

    gradient: PackedTensor


class TailHidden(Content, frozen=True, kw_only=True, tag="tail_hidden"):
    """Output of the last layer, sent down to a device that keeps its labels."""

    hidden: PackedTensor


class TailGradient(Content, frozen=True, kw_only=True, tag="tail_gradient"):
    """Gradient of the loss by the last layer's output, and the loss as a number."""

    gradient: PackedTensor
    loss_sum: Finite
    tokens: NotNegative


class Score(Content, frozen=True, kw_only=True, tag="score"):
    """What one micro-batch of held-out data scored: sums, so that they add up."""

    loss_sum: Finite
    tokens: NotNegative
    exact: NotNegative
    sequences: NotNegative

    def __post_init__(self) -> None:
        """Refuse more right sequences than there are.

        Raises:
            ValueError: such counts cannot be.
        """
        if self.exact > self.sequences:
            raise ValueError(f"{self.exact} of {self.sequences} sequences are right")


class Update(Content, frozen=True, kw_only=True, tag="update"):
    """One tier's LoRA parameters of a session at the end of its steps, as safetensors."""

    tier: Tier
    tokens: Positive
    tensors: bytes


class Want(Content, frozen=True, kw_only=True, tag="want"):
    """A request to send the named frame again: it is waited for and has not come."""

    wanted: str


class Identity(msgspec.Struct, frozen=True, order=True):
    """What names a frame once and for ever: it is applied once, however often it comes."""

    session: str
    step: int
    micro_batch: int
    kind: str


def frame_of(
    assignment: "Assignment", content: "Contents", *, way: tuple[Tier, Tier], at: tuple[int, int] = (0, 0)
) -> "Frame":
    """A frame of the assignment's session from one tier to another, about (step, micro-batch)."""
    agents = {Tier.DEVICE: assignment.device, Tier.EDGE: assignment.edge, Tier.CLOUD: assignment.cloud}
    return Frame(
        sender=agents[way[0]],
        to=agents[way[1]],
        tier=way[0],
        to_tier=way[1],
        device=assignment.device,
        session=assignment.session,
        epoch=assignment.epoch,
        step=at[0],
        micro_batch=at[1],
        content=content,
    )


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """A message between two agents about one session.

    Args:
        sender: agent id, also in the topic.
        to: agent id of the receiver; the cloud for an update.
        tier: the sender's tier.
        to_tier: the receiver's tier.
        device: the session's device.
        epoch: the assignment's epoch; the receiver drops any but the current one.
    """

    sender: str
    to: str
    tier: Tier
    to_tier: Tier
    device: str
    session: str
    epoch: int
    step: int = 0
    micro_batch: int = 0
    content: "Contents"

    @property
    def identity(self) -> Identity:
        """The frame's identity: independent of epoch and route."""
        kind = str(self.content.__struct_config__.tag)
        return Identity(self.session, self.step, self.micro_batch, kind)


Contents = Activation | Gradient | TailHidden | TailGradient | Score | Update | Want


class DataSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What a device says of its data: counts and a fingerprint, never content.

    Args:
        completions: held-out sequences that are an answer to a prompt, so that exact match means something.
    """

    fingerprint: str
    train_sequences: int
    eval_sequences: int
    completions: int = 0


class Birth(msgspec.Struct, frozen=True, kw_only=True):
    """An agent's retained state; with ``online`` false it is the last will.

    Args:
        incarnation: grows with every start of the agent; the state of an older one is ignored.
        part: layers that the agent can load, `all` for a whole model.
        model: fingerprint of the whole model that the part was cut from.
        problem: why the agent cannot work, for people.
    """

    protocol: int = PROTOCOL_VERSION
    agent: str
    role: Tier
    online: bool
    incarnation: int
    version: str = ""
    pid: int = 0
    model: str = ""
    part: str = "all"
    threads: int = 1
    part_parameters: int = 0
    trainable_parameters: int = 0
    data: DataSummary | None = None
    problem: str = ""


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """What a device and its edge do now: one session, retained on the device's topic.

    Args:
        task: `train`, `evaluate`, or `idle` when there is nothing to do.
        epoch: grows with every assignment of the agent; an older one and its frames are void.
        version: adapter version to start from.
        adapter: digest of that version's head; a head of another digest is somebody else's.
        problem: why the device is refused, for people.
    """

    device: Word
    task: str
    session: WordOrNone = ""
    epoch: int = 0
    round: int = 0
    edge: WordOrNone = ""
    cloud: WordOrNone = ""
    version: NotNegative = 0
    adapter: str = ""
    settings: TrainingSettings | None = None
    problem: str = ""


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """Where the fleet is: retained, for people and for newcomers."""

    round: int
    phase: str
    version: int
    sessions: int
    detail: str = ""


class AdapterSection(msgspec.Struct, frozen=True, kw_only=True):
    """The part of an adapter version that one tier needs: a run of chunks."""

    first: int
    chunks: int
    size_bytes: int
    sha256: str


class AdapterHead(msgspec.Struct, frozen=True, kw_only=True):
    """Retained after the chunks of a version: where each section lies, and its digest.

    Args:
        peft: the version's ``adapter_config.json``.
    """

    version: int
    round: int
    model: str
    sections: dict[str, AdapterSection]
    peft: dict[str, Any]


class AdapterChunk(msgspec.Struct, frozen=True, kw_only=True):
    """A retained piece of an adapter version."""

    version: int
    index: int
    data: bytes


class AdapterLatest(msgspec.Struct, frozen=True, kw_only=True):
    """The version that is current; it goes back on a rollback."""

    version: int


class Metrics(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of progress, and the agent's heartbeat. Times in seconds, sizes in bytes.

    Args:
        sent_bytes: payload bytes by first word of the topic; of the session if there is one.
        dropped: packets that were refused since the start.
    """

    time: float = 0.0
    agent: str
    role: Tier
    round: int | None = None
    session: str | None = None
    step: int | None = None
    loss: float | None = None
    tokens: int | None = None
    sent_bytes: dict[str, int] = {}
    received_bytes: dict[str, int] = {}
    dropped: int = 0
    peak_rss_bytes: int = 0


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to the fleet, for people and for the report."""

    time: float = 0.0
    kind: str
    agent: str
    detail: str = ""


class Forget(msgspec.Struct, frozen=True, kw_only=True):
    """Clears a retained topic below the root: housekeeping, nobody relies on it."""

    path: str


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """A person's request to the cloud: ``rollback``, ``pause``, ``resume``, ``now`` or ``stop``."""

    id: Word
    verb: str
    version: int | None = None


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """The cloud's answer to a command."""

    id: str
    ok: bool
    detail: str = ""


State = (
    Birth
    | Assignment
    | Round
    | AdapterHead
    | AdapterChunk
    | AdapterLatest
    | Metrics
    | Event
    | Command
    | Reply
    | Forget
)
Message = Frame | State

_S = TypeVar("_S")


def encode_state(message: object) -> bytes:
    """A state or control message as JSON, keys in the order of the record."""
    return msgspec.json.encode(message)


def decode_state(payload: bytes, kind: type[_S]) -> _S:
    """Read JSON of the expected kind.

    Raises:
        MalformedMessageError: not JSON, or not of this kind.
    """
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, ValueError, RecursionError, UsageError) as error:
        raise MalformedMessageError(str(error)) from None


def encode_content(content: Contents) -> bytes:
    """A frame's content as msgpack."""
    packed: bytes = msgpack.packb(msgspec.to_builtins(content, builtin_types=(bytes,)))
    return packed


def decode_content(body: bytes) -> Contents:
    """Read a frame's content.

    Raises:
        MalformedMessageError: not msgpack, or not a content of this protocol.
    """
    try:
        plain = msgpack.unpackb(body, strict_map_key=True)
        content: Contents = msgspec.convert(plain, type=Contents, builtin_types=(bytes,))
    except (ValueError, msgpack.UnpackException, msgspec.ValidationError, RecursionError) as error:
        raise MalformedMessageError(str(error)) from None
    return content
