"""What a shared broker allows one client, and how an agent keeps to it.

docs/broker-limits.md names the source of each number; a test compares the two.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from iotsplit.errors import UsageError
from iotsplit.quantities import UNITS

CHUNK_BYTES = 60 * 1024
"""The largest payload where a broker sets no lower limit."""
PACKET_BYTES = 256  # room for what a PUBLISH packet has beside its payload: header, topic, packet id
LEAST_BYTES_PER_S = 8192
MARGIN = 0.9
"""Share of a profile's rates that is used: what leaves evenly may arrive in bunches."""

_RATE = re.compile(rf"(\d+(?:\.\d+)?)\s*({'|'.join(UNITS)})?/s")
_CHUNK = re.compile(r"(?:^|/)(?:adapter/\d+|checkpoint/[^/]+/[^/]+)/[0-9]+\Z")


@dataclass(frozen=True, kw_only=True)
class BrokerLimits:
    """What a broker allows one client; None where it sets no limit.

    Args:
        message_bytes: largest PUBLISH packet.
        publishes_per_s: PUBLISH packets from the client in a second.
        bytes_per_s: of these packets.
        window: QoS 1 packets that the broker has not acknowledged.
        window_bytes: of these packets.
        slashes: in a topic or filter.
        topics_per_subscribe: filters in one SUBSCRIBE packet.
        subscriptions: filters at the same time.
        requests_per_s: SUBSCRIBE and UNSUBSCRIBE packets in a second.
    """

    message_bytes: int | None = None
    publishes_per_s: int | None = None
    bytes_per_s: int | None = None
    window: int = 100
    window_bytes: int | None = None
    slashes: int | None = None
    topics_per_subscribe: int = 8
    subscriptions: int | None = None
    requests_per_s: int | None = None

    @property
    def are_paced(self) -> bool:
        """Whether what is said may have to wait before it goes out."""
        paced = (self.publishes_per_s, self.bytes_per_s, self.window_bytes, self.requests_per_s)
        return any(limit is not None for limit in paced)

    def at_most(self, rates: Sequence[str]) -> Self:
        """These limits with other rates.

        Args:
            rates: such as ``10/s`` for publishes and ``500KB/s`` for bytes.

        Raises:
            UsageError: one of them is no rate, or nothing could be said at it.
        """
        changes: dict[str, int] = {}
        for rate in rates:
            name, value = _read_rate(rate)
            if name in changes:
                raise UsageError(f"max_rate has two rates of one kind, {','.join(rates)}", fix="leave one out")
            changes[name] = value
        return replace(self, **changes)

    def chunk_bytes(self, wanted: int | None) -> int:
        """The largest payload to send.

        Args:
            wanted: by a person; None for what suits the broker.

        Raises:
            UsageError: so much cannot go out within a second.
        """
        if wanted is None:
            return self._suitable_chunk()
        if self.bytes_per_s is not None and wanted + PACKET_BYTES > self.bytes_per_s:
            raise UsageError(
                f"chunk_bytes {wanted} is more than may be sent in a second ({self.bytes_per_s} bytes)",
                fix=f"use {self.bytes_per_s - PACKET_BYTES} or less, or a higher --max-rate",
            )
        return wanted

    def _suitable_chunk(self) -> int:
        limits = (self.message_bytes, self.window_bytes, self.bytes_per_s)
        packet = min([CHUNK_BYTES + PACKET_BYTES, *(limit for limit in limits if limit is not None)])
        if self.bytes_per_s is not None:
            # A whole number of them fills a second: what is left over of each would be lost.
            packet = self.bytes_per_s // -(-self.bytes_per_s // packet)
        return min(packet - PACKET_BYTES, CHUNK_BYTES)


NO_LIMITS = BrokerLimits()

PROFILES = {
    "aws": BrokerLimits(
        message_bytes=128 * 1024,
        publishes_per_s=100,
        bytes_per_s=512 * 1024,
        window=100,
        slashes=7,
        topics_per_subscribe=8,
        subscriptions=50,
    ),
    "azure": BrokerLimits(
        message_bytes=64 * 1024,
        publishes_per_s=1000,
        bytes_per_s=1_000_000,
        window=1000,
        window_bytes=64 * 1024,
        slashes=14,
        topics_per_subscribe=10,
        subscriptions=50,
        requests_per_s=5,
    ),
    "emqx-serverless": BrokerLimits(
        message_bytes=1024 * 1024,
        publishes_per_s=10,
        window=32,
        slashes=9,
        subscriptions=10,
    ),
    "small": BrokerLimits(message_bytes=64 * 1024, window=10, slashes=8),
}
"""The limits themselves, as their services state them."""


def limits_of(profile: str, max_rate: Sequence[str] = ()) -> BrokerLimits:
    """What to keep to.

    Args:
        profile: name of a kind of broker, or nothing.
        max_rate: rates that beat the profile's.

    Raises:
        UsageError: there is no such profile, or a rate is none.
    """
    if profile and profile not in PROFILES:
        raise UsageError(f"profile {profile!r} is unknown", fix=f"use one of {', '.join(PROFILES)}")
    limits = PROFILES.get(profile, NO_LIMITS)
    rates = ("publishes_per_s", "bytes_per_s", "requests_per_s")
    stated = {name: getattr(limits, name) for name in rates}
    kept = {name: int(rate * MARGIN) for name, rate in stated.items() if rate is not None}
    return replace(limits, **kept).at_most(max_rate)


def fitting(wanted: frozenset[str], held: frozenset[str], most: int | None) -> frozenset[str]:
    """As many of the wanted filters as a client may have.

    Chunks of retained state come last: as each arrives it is wanted no more, and the next has its turn.

    Args:
        wanted: topic filters.
        held: what is subscribed to now; of equals it stays.
        most: filters at the same time; None for any number.
    """
    if most is None or len(wanted) <= most:
        return wanted
    return frozenset(sorted(wanted, key=lambda each: (is_chunk(each), each not in held, each))[:most])


def is_chunk(topic: str) -> bool:
    """Whether a topic is that of one chunk of retained state."""
    return _CHUNK.search(topic) is not None


def _read_rate(text: str) -> tuple[str, int]:
    found = _RATE.fullmatch(text.strip())
    if found is None:
        raise UsageError(
            f"max_rate {text!r} is no rate", fix="write 10/s for publishes, 500KB/s for bytes, or both"
        )
    number, unit = found.groups()
    name, least = ("publishes_per_s", 1) if unit is None else ("bytes_per_s", LEAST_BYTES_PER_S)
    value = int(float(number) * UNITS[unit or "B"])
    if value < least:
        raise UsageError(
            f"max_rate {text!r} is too small for a fleet",
            fix=f"use {least}{'' if unit is None else 'B'}/s or more",
        )
    return name, value
