"""What an agent asks of a link to the bus; `mqtt` and `memory` fulfil it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from iotsplit.packet import Packet


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkChange:
    """The link came up or went down; `reason` is for people."""

    up: bool
    reason: str = ""


Deliver = Callable[[Packet | LinkChange], None]
"""Called from any thread for each arriving packet and each change of the link; it must only enqueue."""


class Link(Protocol):
    """One client's connection to a broker: MQTT 3.1.1 semantics, QoS 0 and 1.

    A link reconnects by itself until closed, renews its subscriptions when it does, and then delivers
    ``LinkChange(up=True)``. An acknowledged publish is not a delivery: nothing here promises more than
    at-least-once to whoever is connected now.
    """

    def open(self, deliver: Deliver, *, last_will: Packet | None) -> None:
        """Connect once; return when the broker accepted.

        Raises:
            BrokerUnreachableError: nobody answers there.
            RefusedError: credentials, TLS or access rules.
        """

    def subscribe(self, filters: frozenset[str]) -> None:
        """Make `filters` the subscriptions of this client: subscribe what is new, unsubscribe the rest."""

    def publish(self, packet: Packet) -> None:
        """Hand a packet to the bus; blocks while too many bytes wait for the network."""

    def close(self) -> None:
        """Say goodbye (no last will is sent) and wait until everything published has left."""
