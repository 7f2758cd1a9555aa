"""One session's frames: applied once, kept until nobody can need them again, asked for when they are late.

The mechanism is upstream backup, as in stream processors: a sender keeps what it sent until the receiver has
saved a state that is past it. Every tier saves its state before the same steps (`checkpoint_every`) and keeps
the last two (see `reach`). A tier that has come back stands before the step of its checkpoint and says so
(`Resume`): its neighbours send again what they kept from there on, and repeating the same steps on the same
inputs it makes the same bytes as before. Who has come back itself and has not what is asked for goes back to an
older checkpoint. Nobody else rewinds.
"""

from collections.abc import Callable, Container
from dataclasses import dataclass

import msgspec

from iotsplit.errors import DivergedError, PeerError
from iotsplit.messages import (
    Contents,
    Frame,
    Identity,
    Resume,
    Want,
    agent_of,
    frame_of,
)
from iotsplit.plan import Tier
from iotsplit.states import Assignment

FIRST_PATIENCE_S = 15.0
LEAST_PATIENCE_S = 2.0
MAX_PATIENCE_S = 60.0
MAX_ASKED = 3
"""Garbage comes once; what is still not acceptable after it was asked for so often will never be."""
SLOWEST_TIMES = 3.0
"""How many times the slowest answer so far an answer may take before it counts as late."""
MAX_TURNS = 1 << 20
"""Resume messages of one incarnation of an agent that can be told apart."""

Place = tuple[int, int]
"""Step and micro-batch."""


def steps_kept(every: int) -> int:
    """Most steps whose frames a sender keeps for one neighbour of a session.

    The neighbour has saved its state before at least the last but one of the steps where all do.
    """
    return 2 * every + 1


def reach(tier: Tier, every: int) -> int:
    """Steps behind its newest checkpoint that a tier may have to go back to.

    The cloud goes back to its last but one, when a session has not got what the cloud made before its newest.
    Another session can be one step ahead of that newest one: with a checkpoint before each step, this is one
    checkpoint more.
    """
    return every if tier is Tier.CLOUD else max(every, 2)


class Backup:
    """What one tier says in a session, and what it keeps of it.

    Args:
        assignment: the session.
        tier: ours.
        every: steps between two checkpoints.
    """

    def __init__(self, assignment: Assignment, tier: Tier, *, every: int) -> None:
        self.assignment = assignment
        self.checkpoint = 0
        self._tier = tier
        self._every = every
        self._since = 0  # the step that our state was at when we began; from there on we have made frames
        self._frames: dict[Identity, Frame] = {}
        self._saved: dict[Tier, int] = {}  # newest checkpoint that each neighbour has told of
        self._turns: dict[Tier, int] = {}

    def __len__(self) -> int:
        return len(self._frames)

    def __contains__(self, identity: Identity) -> bool:
        return identity in self._frames

    def reassign(self, assignment: Assignment) -> None:
        """The same session goes on under a new epoch, perhaps at another edge."""
        if assignment.edge != self.assignment.edge:
            self._turns.pop(Tier.EDGE, None)
        self.assignment = assignment

    def restart(self, step: int, *, newest: int) -> None:
        """Our state is that before `step` again, and the newest we have saved that before `newest`."""
        self._since, self.checkpoint = step, newest

    def send(self, content: Contents, to: Tier, at: Place = (0, 0)) -> Frame:
        """A frame that nobody will ask for again."""
        frame = frame_of(self.assignment, content, way=(self._tier, to), at=at)
        return msgspec.structs.replace(frame, checkpoint=self.checkpoint)

    def keep(self, content: Contents, to: Tier, at: Place = (0, 0)) -> Frame:
        """A frame that is kept."""
        frame = self.send(content, to, at)
        self._frames[frame.identity] = frame
        return frame

    def hear(self, frame: Frame) -> None:
        """Note what a neighbour says of its checkpoints, and let go what it can never ask for."""
        self.learn(frame.tier, frame.checkpoint)

    def learn(self, tier: Tier, checkpoint: int) -> None:
        """Note a neighbour's checkpoint."""
        if checkpoint > self.newest(tier):
            self._saved[tier] = checkpoint
            self.trim(tier, self.floor(tier))

    def floor(self, tier: Tier) -> int:
        """The oldest checkpoint that a neighbour goes back to: it never asks for what is before."""
        return max(0, self._saved.get(tier, 0) - reach(tier, self._every))

    def newest(self, tier: Tier) -> int:
        """The newest checkpoint that a neighbour has told of."""
        return self._saved.get(tier, 0)

    def trim(self, to: Tier, before_step: int) -> None:
        """Forget what was sent to a tier in steps before that one."""
        self._frames = {i: f for i, f in self._frames.items() if f.to_tier is not to or i.step >= before_step}

    def covers(self, to: Tier, step: int) -> bool:
        """Whether everything is kept that was ever said to a tier from that step on."""
        return step >= max(self._since, self.floor(to))

    def again(self, wanted: Identity) -> Frame | None:
        """The kept frame of that identity as it has to be addressed now, if there is one."""
        frame = self._frames.get(wanted)
        return None if frame is None else self._readdressed(frame)

    def since(self, to: Tier, step: int) -> list[Frame]:
        """Everything kept for a tier from that step on, in order."""
        found = [f for f in self._frames.values() if f.to_tier is to and f.step >= step]
        return [self._readdressed(f) for f in sorted(found, key=lambda f: (f.step, f.micro_batch))]

    def is_news(self, frame: Frame, resume: Resume) -> bool:
        """Whether a Resume is later than all before it from that tier."""
        if resume.turn <= self._turns.get(frame.tier, -1):
            return False
        self._turns[frame.tier] = resume.turn
        return True

    def _readdressed(self, frame: Frame) -> Frame:
        return msgspec.structs.replace(
            frame,
            to=agent_of(self.assignment, frame.to_tier),
            epoch=self.assignment.epoch,
            checkpoint=self.checkpoint,
        )


class Turns:
    """Numbers an agent's Resume messages, so that an old one that comes late is known.

    Args:
        incarnation: gives that of the agent; asked late, because it may grow while the agent joins.
    """

    def __init__(self, incarnation: Callable[[], int]) -> None:
        self._incarnation = incarnation
        self._count = 0

    def resume(self, step: int) -> Resume:
        """A message that is later than all before it."""
        self._count += 1
        return Resume(step=step, turn=self._incarnation() * MAX_TURNS + self._count)


@dataclass(slots=True)
class _Waiting:
    since: float
    due: float
    patience_s: float
    asked: int = 0


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

    def forget_from(self, step: int) -> None:
        """Stop waiting for what belongs to that step or a later one."""
        self._waiting = {i: waiting for i, waiting in self._waiting.items() if i.step < step}

    def is_hopeless(self, identity: Identity, error: PeerError) -> bool:
        """Whether a frame that was refused has been asked for often enough, or would lead to the same again."""
        waiting = self._waiting.get(identity)
        asked = waiting is not None and waiting.asked >= MAX_ASKED
        return asked or isinstance(error, DivergedError)

    def hurry(self, now: float) -> None:
        """Ask for everything at once, and again soon: what was on its way is gone."""
        for waiting in self._waiting.values():
            waiting.due = now
            waiting.patience_s = min(waiting.patience_s, LEAST_PATIENCE_S)

    def late(self, now: float, here: Container[Identity] = ()) -> list[Identity]:
        """What is due to be asked for again, but for what is here and waits for its turn."""
        overdue = []
        for identity, waiting in self._waiting.items():
            if waiting.due <= now and identity in here:
                waiting.due = now + waiting.patience_s
            elif waiting.due <= now:
                waiting.patience_s = min(2 * waiting.patience_s, MAX_PATIENCE_S)
                waiting.due = now + waiting.patience_s
                waiting.asked += 1
                overdue.append(identity)
        return overdue

    @property
    def next_due(self) -> float:
        """When something becomes late; infinity if nothing is waited for."""
        return min((waiting.due for waiting in self._waiting.values()), default=float("inf"))


def wanted_by(frame: Frame, want: Want) -> Identity:
    """The identity that a request names."""
    return Identity(frame.session, frame.step, frame.micro_batch, want.wanted)
