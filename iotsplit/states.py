"""State and control as frozen records: what is retained, reported and asked for.

All of it is JSON, so that ``mosquitto_sub`` shows readable text, and is validated here, once, on decoding.
"""

from typing import Annotated, Any, Literal, TypeVar

import msgspec

from iotsplit.errors import MalformedMessageError, UsageError
from iotsplit.plan import Tier
from iotsplit.settings import TrainingSettings

PROTOCOL_VERSION = 1
CHECKPOINT_SLOTS = 4
"""Names of checkpoints in one epoch: for two that count, one that is cleared, one that is written."""
EPOCHS_APART = 16
"""Epochs of a device after which names of checkpoints come again."""
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
        max_sessions: of an edge: most devices that it serves in a round; 0 if it does not say.
        standby: of an edge: it serves only when no other edge can.
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
    max_sessions: NotNegative = 0
    standby: bool = False
    problem: str = ""


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """What a device and its edge do now: one session, retained on the device's topic.

    Args:
        task: `train`, `evaluate`, or `idle` when there is nothing to do.
        epoch: grows with every assignment of the agent; an older one and its frames are void.
        version: adapter version to start from.
        adapter: digest of that version's head; a head of another digest is somebody else's.
        incarnation: of the edge: one that has started anew since has lost the session.
        checkpoint: the session goes on at another edge, from a checkpoint of this step or a later one;
            absent when it begins.
        cache: session that this one goes on from in what it remembers of samples; empty if from none.
        ends_at: the session ends after so many steps: it was too late, and is carried into the next round.
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
    incarnation: int = 0
    checkpoint: int | None = None
    ends_at: Positive | None = None
    cache: WordOrNone = ""
    settings: TrainingSettings | None = None
    problem: str = ""

    @property
    def steps(self) -> int:
        """Steps of the session, when it is one of training."""
        local_steps = self.settings.local_steps if self.settings is not None else 0
        return local_steps if self.ends_at is None else min(self.ends_at, local_steps)


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


class CheckpointHead(msgspec.Struct, frozen=True, kw_only=True):
    """Retained after the chunks of an edge's checkpoint: what is in it, and its digest.

    Args:
        step: the state is that before this step.
        slot: its place among those of its epoch.
        tokens: loss tokens trained so far in the session.
    """

    device: str
    session: str
    epoch: int
    step: Positive
    slot: Annotated[int, msgspec.Meta(ge=0, lt=CHECKPOINT_SLOTS)]
    tokens: Positive
    chunks: Positive
    size_bytes: Positive
    sha256: str

    @property
    def name(self) -> str:
        """The word of its topic: an edge whose epoch is over cannot overwrite its successor's.

        Names come again, because brokers may never forget one.
        """
        return f"{self.epoch % EPOCHS_APART}.{self.slot}"

    @property
    def path(self) -> str:
        """Where it lies below the root, without ``/head``."""
        return f"checkpoint/{self.device}/{self.name}"


class CheckpointChunk(msgspec.Struct, frozen=True, kw_only=True):
    """A retained piece of an edge's checkpoint."""

    device: str
    name: str
    index: int
    data: bytes


class AdapterLatest(msgspec.Struct, frozen=True, kw_only=True):
    """The version that is current; it goes back on a rollback."""

    version: int


TensorKind = Literal["activation", "gradient", "tail_hidden", "tail_gradient"]
RelativeError = Annotated[float, msgspec.Meta(ge=0, le=1e300)]


class Metrics(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of progress, and the agent's heartbeat. Times in seconds, sizes in bytes.

    Args:
        sent_bytes: payload bytes by first word of the topic; of the session if there is one.
        dropped: packets that were refused since the start.
        busy_s: time that the agent has worked for its sessions since the start.
        codec_error: where it was checked, what the codec has lost of a tensor that was sent:
            ‖decoded - x‖ / ‖x‖.
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
    busy_s: float = 0.0
    codec_error: dict[TensorKind, RelativeError] = {}


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
    | CheckpointHead
    | CheckpointChunk
    | Metrics
    | Event
    | Command
    | Reply
    | Forget
)
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
