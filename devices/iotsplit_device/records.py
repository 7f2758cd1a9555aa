"""What a device keeps on its own disk: said by the role, written by the store."""

from dataclasses import dataclass

from iotsplit.role import Local


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint(Local):
    """The device's state before a step of a session.

    Args:
        tokens: loss tokens trained so far in the session.
        body: LoRA parameters and optimizer as safetensors.
    """

    session: str
    step: int
    tokens: int
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Unusable(Local):
    """A checkpoint that is whole but not of this part and these settings; it is passed over.

    Args:
        step: of the checkpoint.
        reason: what does not fit.
    """

    step: int
    reason: str
