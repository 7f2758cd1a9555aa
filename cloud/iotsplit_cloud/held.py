"""Frames of a training round that have come and wait for their turn."""

from collections.abc import Iterable

from iotsplit.messages import Frame, Identity
from iotsplit.ready import Ready


class Held:
    """What is held of each session, and which sessions have something that can be treated now.

    Args:
        devices: of the round's sessions.
    """

    def __init__(self, devices: Iterable[str]) -> None:
        self.ready = Ready()
        self._frames: dict[str, list[Frame]] = {device: [] for device in devices}

    def add(self, frame: Frame) -> None:
        """Hold a frame."""
        self._frames[frame.device].append(frame)

    def take(self, frame: Frame) -> None:
        """Hold it no longer: it is treated now."""
        self._frames[frame.device].remove(frame)

    def of(self, device: str) -> list[Frame]:
        """What is held of a session, in the order in which it came."""
        return self._frames[device]

    def identities(self, device: str) -> set[Identity]:
        """What is held of a session, by name."""
        return {frame.identity for frame in self._frames[device]}

    def forget_before(self, device: str, step: int) -> None:
        """Forget what is of earlier steps."""
        self._frames[device] = [frame for frame in self._frames[device] if frame.step >= step]

    def drop(self, device: str) -> None:
        """Forget a session."""
        del self._frames[device]
        self.ready.mark(device, ready=False)
