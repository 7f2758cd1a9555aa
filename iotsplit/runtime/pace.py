"""When the next packet may go out, by the rates that a broker allows; pure, its owner waits."""

from collections import deque

from iotsplit.limits import BrokerLimits
from iotsplit.packet import Packet

SECOND = 1.0
SLACK_S = 0.05
"""How much of its even spread a sender that was late may catch up with."""
BACKLOG_S = 1.0
"""What may wait for its turn, in seconds of the rate: more of it would only make signs of life old."""


class TokenBucket:
    """Lets through at most `rate` tokens in any second, evenly spread.

    Each token comes back a second after it was taken. A bucket that refills all the time
    would let through up to twice its rate within a second after a rest.

    Args:
        rate: tokens in a second.
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._taken: deque[tuple[float, int]] = deque()
        self._missing = 0
        self._even_at = float("-inf")

    def due(self, count: int, now: float) -> float:
        """When so many tokens can be taken: now, or later. More than a second's worth goes alone."""
        self._return(now)
        at = max(now, self._even_at)
        lacking = self._missing + min(count, self._rate) - self._rate
        for taken_at, each in self._taken:
            if lacking <= 0:
                break
            lacking -= each
            at = max(at, taken_at + SECOND)
        return at

    def take(self, count: int, now: float) -> None:
        """Take so many."""
        self._return(now)
        self._taken.append((now, count))
        self._missing += count
        self._even_at = max(self._even_at, now - SLACK_S) + count / self._rate

    def _return(self, now: float) -> None:
        while self._taken and self._taken[0][0] + SECOND <= now:
            self._missing -= self._taken.popleft()[1]


class Pace:
    """The rates of one connection.

    Args:
        limits: of the broker.
    """

    def __init__(self, limits: BrokerLimits) -> None:
        self._publishes_per_s, self._bytes_per_s = limits.publishes_per_s, limits.bytes_per_s
        self._publishes, self._bytes, self._requests = (
            None if rate is None else TokenBucket(rate)
            for rate in (limits.publishes_per_s, limits.bytes_per_s, limits.requests_per_s)
        )

    def request_due(self, now: float) -> float:
        """When a SUBSCRIBE or UNSUBSCRIBE may go: now, or later."""
        return now if self._requests is None else self._requests.due(1, now)

    def take_request(self, now: float) -> None:
        """A SUBSCRIBE or UNSUBSCRIBE goes."""
        if self._requests is not None:
            self._requests.take(1, now)

    def due(self, packet: Packet, now: float) -> float:
        """When a packet may go: now, or later."""
        at = now
        if self._publishes is not None:
            at = max(at, self._publishes.due(1, now))
        if self._bytes is not None:
            at = max(at, self._bytes.due(size_of(packet), now))
        return at

    def take(self, packet: Packet, now: float) -> None:
        """A packet goes out."""
        if self._publishes is not None:
            self._publishes.take(1, now)
        if self._bytes is not None:
            self._bytes.take(size_of(packet), now)

    def has_room(self, waiting: int, waiting_bytes: int) -> bool:
        """Whether one more packet may wait behind so many others."""
        publishes = self._publishes_per_s is None or waiting <= self._publishes_per_s * BACKLOG_S
        return publishes and (self._bytes_per_s is None or waiting_bytes <= self._bytes_per_s * BACKLOG_S)


def size_of(packet: Packet) -> int:
    """Bytes of the PUBLISH packet (MQTT 3.1.1 section 3.3)."""
    rest = 2 + len(packet.topic.encode()) + (2 if packet.qos else 0) + len(packet.payload)
    length_bytes, more = 1, rest >> 7
    while more:
        length_bytes, more = length_bytes + 1, more >> 7
    return 1 + length_bytes + rest
