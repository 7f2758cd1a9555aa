"""What a runner asks of a role: messages and time in, messages out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from iotsplit.errors import PeerError
from iotsplit.messages import Message
from iotsplit.plan import Tier
from iotsplit.states import Birth


class Local:
    """Base of what a role says to its own machine instead of the bus: kept on disk, never sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused(Local):
    """A message that was held and turned out not to be acceptable: counted, logged once, gone.

    Said instead of raised where other things are said in the same breath, which must not be lost.
    """

    message: Message
    error: PeerError


Output = Message | Local


class Role(Protocol):
    """A deterministic agent: its state and what it says follow from the messages and times it is given.

    Only the runner touches the link, the clock and the disk. One call at a time: roles need no locks.
    """

    agent: str
    tier: Tier
    birth: Birth
    """The agent's retained state as it is now; the runner publishes it when it changes."""

    @property
    def interests(self) -> frozenset[str]:
        """Topic filters below the root; the runner subscribes to the difference after each call."""

    @property
    def finished(self) -> bool:
        """Whether the agent has done what it was started for."""

    def handle(self, message: Message, now: float) -> Sequence[Output]:
        """Take a message. A PeerError that leaves here is counted and logged; the message is dropped."""

    def tick(self, now: float) -> Sequence[Output]:
        """Do what is due: one piece of work, or what a time-out asks for."""

    def reconnected(self, now: float) -> Sequence[Output]:
        """The link is back: say again what is retained, or look whether the broker still has it."""

    def next_tick(self, now: float) -> float:
        """When `tick` has to be called next; not after `now` if there is work to do."""
