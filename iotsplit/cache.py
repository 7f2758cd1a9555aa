"""What both ends of a hop remember of the samples that went over it, so that only changes have to. Pure.

Rows are bytes: the hidden states of a sample as its receiver read them. What a session sends waits until the
next one begins: as long as a session can be repeated, what it goes on from does not change. With its assignment
the cloud names the session that it goes on from. An end that has not got all that this one sent begins empty.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass

from iotsplit.errors import MalformedMessageError
from iotsplit.role import Local
from iotsplit.settings import TrainingSettings

Place = tuple[int, int, int]
"""Step, micro-batch, and row in it."""

ROUNDS = 32
"""In which a device has to train once to be remembered by others: some rest, some never come back."""

NOWHERE: Place = (0, 0, 0)
"""Of what is gone on from: where it was sent does not matter any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is remembered of a sample.

    Args:
        sample: its number.
        place: where in its session it was sent.
        data: as `iotsplit.tensors.remembered` packs it.
        digest: of what the sample is, for its owner: numbers may come to mean other samples.
    """

    sample: int
    place: Place
    data: bytes
    digest: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheChange(Local):
    """What has changed in a cache: written at once, and the same when it is written again.

    Args:
        owner: whose samples.
        base: the session that is gone on from.
        session: the one at hand.
        emptied: all rows are gone.
        rows: what the session at hand goes on from, where it is new.
        gone: samples that are not remembered any more.
        waiting: what it has sent; that of others is gone.
        is_last: nothing of this owner is remembered any more.
    """

    owner: str
    base: str
    session: str
    emptied: bool
    rows: tuple[Row, ...] = ()
    gone: tuple[int, ...] = ()
    waiting: tuple[Row, ...] = ()
    is_last: bool = False


class Cache:
    """One end's memory of a device's samples at one cut.

    Both ends are told the same in the same order, and so hold the same without speaking of it. A cache that is
    full takes no new samples in: each is sent once in an epoch, so to make room for one is to lose another. One
    that has become longer, and does not fit any more, is forgotten.

    Args:
        owner: whose samples.
        limit_bytes: of what sessions go on from; what a session sends waits beside it.
        each: rows that a session sends.
        held: what was written of it.
        is_kept: whether somebody writes what `take_change` gives.
    """

    def __init__(
        self,
        owner: str,
        *,
        limit_bytes: int,
        each: int,
        held: CacheChange | None = None,
        is_kept: bool = True,
    ) -> None:
        self._owner = owner
        self._limit_bytes = limit_bytes
        self._each = each
        self._base = held.base if held else ""
        self._session = held.session if held else ""
        self._rows = {row.sample: row for row in held.rows} if held else {}
        self._waiting = {row.place: row for row in held.waiting} if held else {}
        self._size_bytes = sum(len(row.data) for row in self._rows.values())
        self._is_kept = is_kept
        self._has_begun = self._has_emptied = False  # since the last change that was taken
        self._touched: dict[int, None] = {}  # samples, in order
        self._new_waiting: dict[Place, Row] = {}

    def __contains__(self, sample: int) -> bool:
        return sample in self._rows

    def __getitem__(self, sample: int) -> bytes:
        return self._rows[sample].data

    def __len__(self) -> int:
        return len(self._rows)

    def holds(self, sample: int, digest: bytes) -> bool:
        """Whether the sample of that number is remembered and is still the same."""
        row = self._rows.get(sample)
        return row is not None and row.digest == digest

    @property
    def base(self) -> str:
        """The session that the one at hand goes on from; empty if from none, or if that is lost."""
        return self._base

    @property
    def newest(self) -> str:
        """The session that the next one can go on from; empty if there is none."""
        return self._session if self._is_whole else self._base

    @property
    def _is_whole(self) -> bool:
        return len(self._waiting) == self._each

    def fits(self, settings: TrainingSettings) -> bool:
        """Whether it is of the size that these settings want."""
        each = settings.local_steps * settings.batch_size
        return (self._limit_bytes, self._each) == (settings.cache_bytes, each)

    def begin(self, session: str, base: str) -> None:
        """Begin a session, or go on with it.

        Args:
            session: its name.
            base: the session that it goes on from; empty if from none.
        """
        is_next = bool(base) and base == self._session and self._is_whole
        goes_on = bool(base) and base == self._base
        if is_next:
            for place in sorted(self._waiting):
                self._admit(self._waiting[place])
        elif not goes_on:
            self._clear()
        if session != self._session:
            self._waiting, self._new_waiting = {}, {}
        self._base, self._session = base, session
        self._has_begun = True
        if base and not (is_next or goes_on):
            self._lose_base()

    def empty(self) -> None:
        """Forget what is gone on from: the other end has."""
        self._clear()
        if self._base:
            self._lose_base()

    def _lose_base(self) -> None:
        """Nobody goes on from the session at hand: some of it may have been sent as changes, and then whole.

        An edge asks for what it has lost, and so holds the same as all others.
        """
        self._base = ""
        if self._is_kept:
            self._session = ""

    def _clear(self) -> None:
        self._rows, self._touched, self._size_bytes = {}, {}, 0
        self._has_emptied = True  # also where nothing is held: the disk may be of an earlier life

    def put(self, row: Row) -> None:
        """Note what was sent; once more and the same when a step is repeated."""
        if self._waiting.get(row.place) != row:
            self._waiting[row.place] = row
            self._new_waiting |= {row.place: row} if self._is_kept else {}

    def recall(self, sample: int, data: bytes, *, beside: Container[int]) -> bool:
        """Take in what the other end still has of a sample; false if that is more than it can have.

        Its rows are not more than the limit. Those that are here and not there may be as many; what is beyond
        makes room, and is asked for when it is wanted.

        Args:
            sample: its number.
            data: its row.
            beside: samples that are wanted with it, and stay.
        """
        room = 2 * self._limit_bytes - len(data)
        for other in [each for each in self._rows if each not in beside]:
            if self._size_bytes <= room:
                break
            self._forget(other)
        fits = self._size_bytes <= room
        if fits:
            self._keep(Row(sample=sample, place=NOWHERE, data=data))
        return fits

    def take_change(self) -> CacheChange | None:
        """What has to be written since the last call."""
        if not (self._has_begun or self._has_emptied or self._new_waiting):
            return None
        change = CacheChange(
            owner=self._owner,
            base=self._base,
            session=self._session,
            emptied=self._has_emptied,
            rows=tuple(self._rows[sample] for sample in self._touched if sample in self._rows),
            gone=tuple(sample for sample in self._touched if sample not in self._rows),
            waiting=tuple(self._new_waiting.values()),
        )
        self._has_begun = self._has_emptied = False
        self._touched, self._new_waiting = {}, {}
        return change

    def _admit(self, row: Row) -> None:
        """Keep what is remembered up to date, and take in something new, if there is room for it."""
        before = self._size_bytes
        self._forget(row.sample)
        if self._size_bytes + len(row.data) <= max(self._limit_bytes, before):
            self._keep(row)

    def _keep(self, row: Row) -> None:
        self._forget(row.sample)
        self._rows[row.sample] = row
        self._size_bytes += len(row.data)
        self._touch(row.sample)

    def _forget(self, sample: int) -> None:
        known = self._rows.pop(sample, None)
        if known is not None:
            self._size_bytes -= len(known.data)
            self._touch(sample)

    def _touch(self, sample: int) -> None:
        if self._is_kept:
            self._touched[sample] = None


def new_cache(
    owner: str, settings: TrainingSettings, held: CacheChange | None = None, *, is_kept: bool = True
) -> Cache:
    """A cache of the fleet's size; arguments as of `Cache`."""
    return Cache(
        owner,
        limit_bytes=settings.cache_bytes,
        each=settings.local_steps * settings.batch_size,
        held=held,
        is_kept=is_kept,
    )


def is_long_ago(round_: int, now: int) -> bool:
    """Whether a device that trained last in that round is not remembered any more; a run may begin anew."""
    return abs(now - round_) >= ROUNDS


def nothing_of(owner: str) -> CacheChange:
    """What is written when all of an owner is forgotten."""
    return CacheChange(owner=owner, base="", session="", emptied=True, is_last=True)


def rows_of(cache: Cache | None, samples: Iterable[int], *, most: int) -> dict[int, bytes]:
    """What a cache has of samples that a neighbour asks for.

    Raises:
        MalformedMessageError: it asks for more than that many.
    """
    wanted = set(samples)
    if len(wanted) > most:
        raise MalformedMessageError(f"a question for {len(wanted)} samples, more than a batch of {most}")
    return {sample: cache[sample] for sample in sorted(wanted) if cache is not None and sample in cache}
