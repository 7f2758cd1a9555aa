"""What the cloud writes down of the round at hand: its decisions, and its state at checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass

from iotsplit.role import Local
from iotsplit.states import Assignment


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundState(Local):
    """Decisions about the round at hand, written before they are said: replay never decides again.

    Args:
        attempt: grows when the round is done again from its start.
        assignments: of its sessions as they are now, by device.
        dropped: reasons by device.
    """

    round: int
    attempt: int
    assignments: Mapping[str, Assignment]
    dropped: Mapping[str, str]


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
