"""What the tiers say to each other about a session: frames of msgpack; and what any message can be.

Contents are validated here, once, on decoding: nothing past this module sees a dict.
"""

from typing import Annotated

import msgpack
import msgspec

from iotsplit.errors import MalformedMessageError
from iotsplit.plan import Tier
from iotsplit.states import Assignment, Finite, NotNegative, Positive, State

SampleNumber = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class PackedTensor(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor as bytes: `scheme` names the wire format (see docs/PROTOCOL.md), `shape` the dimensions."""

    scheme: str
    shape: tuple[int, ...]
    data: bytes


class Content(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """Base of what a frame carries; the tag is the `kind` of its identity."""


class Cached(msgspec.Struct, frozen=True, kw_only=True):
    """Which samples an activation is of, and what has changed of those that its receiver remembers.

    Args:
        samples: the number of each row's.
        known: of each row, whether it comes as a change; the others are the rows of `hidden`.
        change: of the tokens of known rows, one after the other without padding: (tokens, width).
        empty: the device remembers nothing from before this session.
    """

    samples: tuple[SampleNumber, ...]
    known: tuple[bool, ...]
    change: PackedTensor
    empty: bool

    def __post_init__(self) -> None:
        """Refuse rows that are not one for each sample.

        Raises:
            ValueError: they are not.
        """
        if len(self.samples) != len(self.known):
            raise ValueError(f"{len(self.samples)} samples in {len(self.known)} rows")


class Activation(Content, frozen=True, kw_only=True, tag="activation", omit_defaults=True):
    """Hidden states that one tier hands upwards.

    Args:
        hidden: (batch, time, width), output of the sender's last layer; with `cached` only rows that are not
            known.
        mask: (batch, time) of 0 and 1, 1 where there is a token.
        labels: (batch, time) next-token ids, -100 where there is no loss; absent if labels stay.
        step_tokens: loss tokens of the whole step, over all its micro-batches.
        steps: steps of the whole session.
        cached: set if both ends remember samples.
    """

    hidden: PackedTensor
    mask: PackedTensor
    labels: PackedTensor | None = None
    step_tokens: Positive
    steps: Positive
    cached: Cached | None = None


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


class Want(Content, frozen=True, kw_only=True, tag="want", omit_defaults=True):
    """A request to send the named frame again: it is waited for and has not come.

    Args:
        wanted: its kind.
        samples: if it is `device_rows` or `cloud_rows`: of which samples.
    """

    wanted: str
    samples: tuple[SampleNumber, ...] = ()


class Rows(Content, frozen=True, kw_only=True):
    """What an end of a hop remembers of samples, for an edge that has lost it.

    Args:
        samples: their numbers.
        rows: of each of them, eight bits a value.
    """

    samples: tuple[SampleNumber, ...]
    rows: tuple[bytes, ...]

    def __post_init__(self) -> None:
        """Refuse rows that are not one for each sample.

        Raises:
            ValueError: they are not.
        """
        if len(self.samples) != len(self.rows):
            raise ValueError(f"{len(self.rows)} rows of {len(self.samples)} samples")


class DeviceRows(Rows, frozen=True, kw_only=True, tag="device_rows"):
    """What a device remembers of what it has sent."""


class CloudRows(Rows, frozen=True, kw_only=True, tag="cloud_rows"):
    """What the cloud remembers of what it was sent."""


class Resume(Content, frozen=True, kw_only=True, tag="resume"):
    """A tier has come back and stands before `step`: whatever was kept for it from there on is sent again.

    Args:
        turn: grows with each such message of an agent; an older one that comes late says nothing.
    """

    step: NotNegative
    turn: NotNegative


class Stuck(Content, frozen=True, kw_only=True, tag="stuck"):
    """A session cannot go on.

    Args:
        reason: for people.
        unfit: its own numbers are not acceptable, and it has to leave the round; else what is left of it is
            not enough, and the round has to be done again.
    """

    reason: str
    unfit: bool = False


class Identity(msgspec.Struct, frozen=True, order=True):
    """What names a frame once and for ever: it is applied once, however often it comes."""

    session: str
    step: int
    micro_batch: int
    kind: str


def agent_of(assignment: "Assignment", tier: Tier) -> str:
    """Who stands for a tier in the assignment's session."""
    agents = {Tier.DEVICE: assignment.device, Tier.EDGE: assignment.edge, Tier.CLOUD: assignment.cloud}
    return agents[tier]


def frame_of(
    assignment: "Assignment", content: "Contents", *, way: tuple[Tier, Tier], at: tuple[int, int] = (0, 0)
) -> "Frame":
    """A frame of the assignment's session from one tier to another, about (step, micro-batch)."""
    return Frame(
        sender=agent_of(assignment, way[0]),
        to=agent_of(assignment, way[1]),
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
        checkpoint: newest step whose state the sender has saved; it never asks for inputs of long before.
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
    checkpoint: int = 0
    content: "Contents"

    @property
    def identity(self) -> Identity:
        """The frame's identity: independent of epoch and route."""
        kind = str(self.content.__struct_config__.tag)
        return Identity(self.session, self.step, self.micro_batch, kind)


Contents = (
    Activation
    | Gradient
    | TailHidden
    | TailGradient
    | Score
    | Update
    | Want
    | DeviceRows
    | CloudRows
    | Resume
    | Stuck
)


Message = Frame | State


def encode_content(content: Contents) -> bytes:
    """A frame's content as msgpack."""
    packed: bytes = msgpack.packb(msgspec.to_builtins(content, builtin_types=(bytes,)))
    return packed


def decode_content(body: bytes | memoryview) -> Contents:
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
