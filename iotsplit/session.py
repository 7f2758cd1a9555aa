"""One session's frames: applied once, kept until the other side is past them, asked for when they are late.

The mechanism is that of upstream backup in stream processors: a sender keeps what it sent, a receiver that
misses something names it, and the kept bytes are sent again under the current epoch.
"""

from dataclasses import dataclass

import msgspec

from iotsplit.messages import Frame, Identity, Want

FIRST_PATIENCE_S = 15.0
LEAST_PATIENCE_S = 2.0
MAX_PATIENCE_S = 60.0
SLOWEST_TIMES = 3.0
"""How many times the slowest answer so far an answer may take before it counts as late."""


class Kept:
    """Frames that were sent and may be asked for again."""

    def __init__(self) -> None:
        self._frames: dict[Identity, Frame] = {}

    def __len__(self) -> int:
        return len(self._frames)

    def keep(self, frame: Frame) -> Frame:
        """Keep a frame, and return it to be sent."""
        self._frames[frame.identity] = frame
        return frame

    def again(self, wanted: Identity, *, epoch: int) -> Frame | None:
        """The kept frame of that identity under the current epoch, if there is one."""
        frame = self._frames.get(wanted)
        return None if frame is None else msgspec.structs.replace(frame, epoch=epoch)

    def trim(self, before_step: int) -> None:
        """Forget the frames of steps before that one."""
        self._frames = {i: f for i, f in self._frames.items() if i.step >= before_step}


@dataclass(slots=True)
class _Waiting:
    since: float
    due: float
    patience_s: float


class Awaited:
    """Identities that are waited for: who is late is asked for, ever more patiently.

    What is late depends on how long answers have taken so far: a slow board is not a lossy link.
    """

    def __init__(self) -> None:
        self._waiting: dict[Identity, _Waiting] = {}
        self._patience_s = FIRST_PATIENCE_S
        self._slowest_s = 0.0

    def __contains__(self, identity: Identity) -> bool:
        return identity in self._waiting

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def identities(self) -> list[Identity]:
        """What is waited for."""
        return list(self._waiting)

    def expect(self, identity: Identity, now: float) -> None:
        """Wait for a frame from now on."""
        self._waiting.setdefault(identity, _Waiting(now, now + self._patience_s, self._patience_s))

    def arrived(self, identity: Identity, now: float) -> None:
        """Stop waiting for a frame."""
        waiting = self._waiting.pop(identity, None)
        if waiting is not None:
            self._slowest_s = max(self._slowest_s, now - waiting.since)
            patience_s = SLOWEST_TIMES * self._slowest_s
            self._patience_s = min(max(LEAST_PATIENCE_S, patience_s), MAX_PATIENCE_S)

    def late(self, now: float) -> list[Identity]:
        """What is due to be asked for again."""
        overdue = []
        for identity, waiting in self._waiting.items():
            if waiting.due <= now:
                waiting.patience_s = min(2 * waiting.patience_s, MAX_PATIENCE_S)
                waiting.due = now + waiting.patience_s
                overdue.append(identity)
        return overdue

    @property
    def next_due(self) -> float:
        """When something becomes late; infinity if nothing is waited for."""
        return min((waiting.due for waiting in self._waiting.values()), default=float("inf"))


def wanted_by(frame: Frame, want: Want) -> Identity:
    """The identity that a request names."""
    return Identity(frame.session, frame.step, frame.micro_batch, want.wanted)
