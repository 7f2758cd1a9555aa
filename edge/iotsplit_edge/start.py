"""What an edge looks for before it can begin a session: an adapter version, or a checkpoint of another edge."""

from iotsplit.errors import MalformedMessageError
from iotsplit.plan import Tier
from iotsplit.retained import MAX_SECTION_BYTES, Pieces
from iotsplit.session import reach
from iotsplit.states import Assignment, CheckpointChunk, CheckpointHead

MAX_HEADS = 64
"""Checkpoints of one device that are remembered: far more than its edges leave behind."""
PATIENCE_S = 15.0
"""How long a broker may say nothing new of a checkpoint before it counts as lost."""


class Start:
    """The way to the state that a session begins with.

    Args:
        assignment: the session. Without a checkpoint in it, it begins with the adapter version.
        now: the time.
        at_most: the latest step to begin with.
    """

    def __init__(self, assignment: Assignment, *, now: float, at_most: int | None = None) -> None:
        self.assignment = assignment
        self.heads: dict[str, CheckpointHead] = {}
        self.foreign: dict[str, CheckpointHead] = {}  # of other sessions: nobody needs them any more
        self.chosen: CheckpointHead | None = None
        self.body: bytes | None = None
        self._at_most = at_most
        settings = assignment.settings
        self._every = settings.checkpoint_every if settings is not None else 1
        self._gave_up = False
        self._pieces: Pieces | None = None
        self._broken: set[CheckpointHead] = set()
        self._heard_at = now

    @property
    def interests(self) -> frozenset[str]:
        """Heads of the device's checkpoints, and the chunks of the one that is fetched."""
        heads = f"checkpoint/{self.assignment.device}/+/head"
        wanted = self._pieces.interests if self._pieces is not None and self.body is None else frozenset()
        return wanted | {heads}

    @property
    def takes_over(self) -> bool:
        """Whether the session has been somewhere before."""
        return self.assignment.checkpoint is not None or self._at_most is not None

    def take_head(self, head: CheckpointHead, now: float) -> None:
        """Note a checkpoint on the broker, and fetch it if it is the best.

        Raises:
            MalformedMessageError: nobody could hold it.
        """
        if not head.chunks <= head.size_bytes <= MAX_SECTION_BYTES:
            raise MalformedMessageError(f"a checkpoint of {head.size_bytes} bytes in {head.chunks} chunks")
        ours = head.session == self.assignment.session
        known, others = (self.heads, self.foreign) if ours else (self.foreign, self.heads)
        replaced = others.pop(head.name, None) is not None
        if (head == known.get(head.name) or len(known) >= MAX_HEADS) and not replaced:
            return
        known[head.name] = head
        if ours:
            self._heard_at = now
        self._choose()

    def take_chunk(self, chunk: CheckpointChunk, now: float) -> None:
        """Take a piece of the checkpoint that is fetched.

        Raises:
            MalformedMessageError: it is not what its head says; another one is tried.
        """
        if self.chosen is None or self._pieces is None or chunk.name != self.chosen.name:
            return
        self._heard_at = now
        try:
            self.body = self._pieces.add(chunk.index, chunk.data)
        except MalformedMessageError:
            self.give_up_chosen()
            raise

    def give_up_chosen(self) -> None:
        """The chosen checkpoint cannot be used."""
        if self.chosen is not None:
            self._broken.add(self.chosen)
        self.chosen = self._pieces = self.body = None
        self._choose()

    @property
    def may_begin_anew(self) -> bool:
        """Whether the adapter version will do: nothing is better, and neighbours have kept all since then."""
        if self.chosen is not None:
            return False
        if self._at_most is None and not self.assignment.checkpoint:
            return True
        # Who goes back has named a checkpoint: neighbours may keep only what comes after the one before it.
        early = self._at_most is not None and self._at_most < self._every
        return self._is_near_start and (early or self._gave_up)

    @property
    def _is_near_start(self) -> bool:
        """Whether the adapter version is one of the last states that a lost edge had saved."""
        newest = max([self.assignment.checkpoint or 0, *(head.step for head in self.heads.values())])
        return newest <= reach(Tier.EDGE, self._every)

    def is_stuck(self, now: float) -> bool:
        """Whether nothing more is to be hoped for; true once in each time of patience.

        A checkpoint whose pieces do not come is given up first.
        """
        if not self.takes_over or self.body is not None or now < self.due:
            return False
        self._heard_at = now
        self._gave_up = True
        self.give_up_chosen()
        return self.chosen is None and not self.may_begin_anew

    @property
    def due(self) -> float:
        """When patience is over."""
        return self._heard_at + PATIENCE_S

    @property
    def _most(self) -> int:
        """The latest step that will do."""
        steps = self.assignment.steps
        return steps if self._at_most is None else min(self._at_most, steps)

    @property
    def _least(self) -> int:
        """The earliest step that will do.

        Who goes back has a checkpoint of each step where all take theirs, as long as it is kept. An older one
        may be heard of first, and neighbours need not have kept what comes after it: it will do only when
        the right one is broken or does not come.
        """
        if self._at_most is None:
            return self.assignment.checkpoint or 0
        return 0 if self._gave_up or self._broken else self._most // self._every * self._every

    def _choose(self) -> None:
        usable = [
            head
            for head in self.heads.values()
            if head not in self._broken and self._least <= head.step <= self._most
        ]
        best = max(usable, key=lambda head: (head.step, head.epoch), default=None)
        if not self.takes_over or best is self.chosen:
            return
        self.chosen = best
        self.body = self._pieces = None
        if best is not None:
            self._pieces = Pieces(best.path, range(best.chunks), size_bytes=best.size_bytes, sha256=best.sha256)
