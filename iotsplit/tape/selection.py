"""Which records of a tape are meant: by topic, session, round, kind and time. Pure."""

import bisect
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from iotsplit.errors import UsageError
from iotsplit.runtime.memory import matches
from iotsplit.tape.format import Record
from iotsplit.tape.letters import Letter, Listener
from iotsplit.tape.places import MAX_PLACES, Index, Place

_MOMENT = re.compile(r"(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)|(\d+(?:\.\d+)?)\s*(ms|s|m|h)?")
_UNITS = {None: 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is chosen; what is not said chooses everything.

    Args:
        filters: topic filters, of which one has to match.
        session: a session.
        round: number of a round.
        kind: of a frame's content, or the first word of a topic.
    """

    filters: tuple[str, ...] = ()
    session: str | None = None
    round: int | None = None
    kind: str | None = None

    @property
    def is_all(self) -> bool:
        """Whether nothing is left out."""
        return self == Selection()

    @property
    def needs_letters(self) -> bool:
        """Whether what is said has to be understood."""
        return (self.session, self.round, self.kind) != (None, None, None)

    def wants(self, topic: str) -> bool:
        """Whether a topic is chosen."""
        return not self.filters or any(matches(each, topic) for each in self.filters)

    def takes(self, letter: Letter, listener: Listener) -> bool:
        """Whether a letter is chosen."""
        return (
            self.wants(letter.record.topic)
            and self.session in (None, letter.session)
            and (self.round is None or self.round == listener.round_of(letter))
            and self.kind in (None, letter.kind)
        )

    def __str__(self) -> str:
        said = [*(f"topic {each}" for each in self.filters)]
        said += [f"session {self.session}"] if self.session is not None else []
        said += [f"round {self.round}"] if self.round is not None else []
        said += [f"kind {self.kind}"] if self.kind is not None else []
        return ", ".join(said) or "everything"


@dataclass(frozen=True, slots=True)
class Moment:
    """A place in a tape: seconds from its first record, or where a round begins."""

    seconds: float = 0.0
    round: int | None = None


def read_moment(text: str) -> Moment:
    """A moment as people write it: ``12.5``, ``90s``, ``2m``, ``1:30``, ``0:01:30`` or ``round:2``.

    Raises:
        UsageError: it is none of these.
    """
    if text.startswith("round:") and text.removeprefix("round:").isdecimal():
        return Moment(round=int(text.removeprefix("round:")))
    found = _MOMENT.fullmatch(text)
    if found is None:
        raise UsageError(
            f"{text!r} is no place in a tape", fix="write seconds from its start (90s, 1:30), or round:2"
        )
    hours, minutes, seconds, plain, unit = found.groups()
    if plain is not None:
        return Moment(float(plain) * _UNITS[unit])
    return Moment(int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds))


class Window:
    """Says of each record in turn whether it lies between two moments.

    Args:
        start: the first moment, or None for the beginning.
        end: the first moment that is not meant any more, or None for the end.
        round_of: gives the round that the fleet is in after a record.
        origin_ns: monotonic time that seconds count from; by default that of the first record.
    """

    def __init__(
        self,
        start: Moment | None,
        end: Moment | None,
        *,
        round_of: Callable[[Record], int],
        origin_ns: int | None = None,
    ) -> None:
        self._start, self._end = start, end
        self._round_of = round_of
        self._origin_ns = origin_ns
        self.over = False
        """Nothing that comes later is meant."""

    def holds(self, record: Record) -> bool:
        """Whether the next record lies in it."""
        if self._origin_ns is None:
            self._origin_ns = record.mono_ns
        at = (record.mono_ns - self._origin_ns) / 1e9
        round_ = self._round_of(record) if self._needs_round else 0
        self.over = self.over or (self._end is not None and _reached(self._end, at, round_))
        return not self.over and (self._start is None or _reached(self._start, at, round_))

    @property
    def _needs_round(self) -> bool:
        return any(each is not None and each.round is not None for each in (self._start, self._end))


def _reached(moment: Moment, at: float, round_: int) -> bool:
    return round_ >= moment.round if moment.round is not None else at >= moment.seconds


def place_before(index: Index, start: Moment, end: Moment | None, *, origin_ns: int) -> Place | None:
    """Where to begin to read so that nothing that lies between two moments is missed, by a tape's index.

    Args:
        index: of the tape.
        start: the first moment.
        end: the first moment that is not meant any more, or None for the end.
        origin_ns: monotonic time that seconds count from.

    Returns:
        The last block that will do, or None if the tape has to be read from its beginning.
    """
    by_round = [moment for moment in (start, end) if moment is not None and moment.round is not None]
    if not index.ordered or (by_round and not index.rounds):
        return None
    if start.round is not None:
        return _round_place(index, start.round)
    before = bisect.bisect_left(
        index.places, start.seconds, key=lambda place: (place.mono_ns - origin_ns) / 1e9
    )
    found = index.places[before - 1] if before else None
    # A round that was over before that block would not be heard of from there.
    if found is None or (end is not None and end.round is not None and _is_past(index, end.round, found)):
        return None
    return found


def _round_place(index: Index, round_: int) -> Place | None:
    if round_ <= 0:
        return None
    return next((each.place for each in index.rounds if each.round >= round_), index.rounds[-1].place)


def _is_past(index: Index, round_: int, place: Place) -> bool:
    if round_ > index.rounds[-1].round:
        return len(index.rounds) >= MAX_PLACES  # it may be one of those that the index does not name
    found = _round_place(index, round_)
    return found is None or found.offset < place.offset


def within(records: Iterable[Record], window: Window) -> Iterator[Record]:
    """The records that lie in a window."""
    for record in records:
        if window.holds(record):
            yield record
        elif window.over:
            return
