"""The least thing on the bus: bytes on a topic."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """One MQTT message.

    `retain` on a packet that arrives means: it was kept by the broker from before we subscribed.
    """

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
