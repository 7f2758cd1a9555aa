"""What the cloud writes down of the round at hand: its decisions, and its state at checkpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from iotsplit.role import Local
from iotsplit.states import Assignment


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedSession:
    """What is written down of a session that was carried.

    Args:
        tokens: loss tokens that it has trained on.
    """

    assignment: Assignment
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundState(Local):
    """Decisions about the round at hand, written before they are said: replay never decides again.

    Args:
        attempt: grows when the round is done again from its start.
        assignments: of its sessions as they are now, by device.
        dropped: reasons by device.
        carried: sessions that have left this round or the one before and may still count, by device.
        paused: no other is begun until somebody says so.
    """

    round: int
    attempt: int
    assignments: Mapping[str, Assignment]
    dropped: Mapping[str, str]
    carried: Mapping[str, CarriedSession]
    paused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """What a checkpoint of the cloud holds of a session.

    Args:
        tokens: loss tokens trained so far.
        losses: mean loss of each finished step.
        edge_checkpoint: newest checkpoint that its edge has told of.
    """

    tokens: int
    losses: tuple[float, ...]
    edge_checkpoint: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundCheckpoint(Local):
    """The cloud's state before a step of the round at hand.

    Args:
        regular: taken where all tiers take theirs; the others follow the loss of a session.
        sessions: by device.
        body: LoRA parameters and optimizer as safetensors.
    """

    step: int
    regular: bool
    sessions: Mapping[str, SessionRecord]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """Where an earlier start of the cloud stood.

    Args:
        round: the last round that was finished.
        interrupted: the round that was under way.
        checkpoints: of that round.
        carried: sessions that were too late for their round and may still count, by device.
        paused: no round was to be begun.
    """

    round: int = 0
    paused: bool = False
    interrupted: RoundState | None = None
    checkpoints: Sequence[RoundCheckpoint] = ()
    carried: Mapping[str, CarriedSession] = field(default_factory=dict)
