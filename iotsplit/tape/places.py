"""The index of a tape: what is where, so that a reader can begin in its midst. Pure."""

from dataclasses import dataclass, field

import msgspec

from iotsplit.errors import PeerError
from iotsplit.states import Round, decode_state

MAX_PLACES = 4096
_MOST = 2**63 - 1  # what msgpack can write; whoever says a round may say any number


class Place(msgspec.Struct, frozen=True, array_like=True):
    """Where a block of records begins: offset in the file, time of its first record, records before it."""

    offset: int
    mono_ns: int
    records: int


class RoundPlace(msgspec.Struct, frozen=True, array_like=True):
    """The block in which a round was said that is higher than all before it."""

    round: int
    place: Place


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a tape that was closed: where things are, and how much there is.

    Args:
        places: of some blocks, at most 4096, evenly spread.
        rounds: of the first 4096 rounds of the fleet that the header names.
        ordered: times never go back, so that a moment can be looked for among the places.
        lost: messages that the observer knows to have missed.
    """

    places: tuple[Place, ...] = ()
    rounds: tuple[RoundPlace, ...] = ()
    ordered: bool = False
    records: int = 0
    payload_bytes: int = 0
    first_mono_ns: int = 0
    last_mono_ns: int = 0
    lost: int = 0


@dataclass(slots=True)
class Spread:
    """A few places out of any number: when there are too many, every other one is let go."""

    places: list[Place] = field(default_factory=list)
    _stride: int = 1
    _count: int = 0

    def add(self, place: Place) -> None:
        """Note a block."""
        if self._count % self._stride == 0:
            self.places.append(place)
        self._count += 1
        if len(self.places) > MAX_PLACES:
            self.places = self.places[::2]
            self._stride *= 2


class Survey:
    """Makes the index while records are written, or read.

    Args:
        round_topic: where the fleet's rounds are said; empty if the tape is of none.
    """

    def __init__(self, round_topic: str = "") -> None:
        self.records = 0
        self.lost = 0
        self._round_topic = round_topic
        self._spread = Spread()
        self._block = Place(-1, 0, 0)
        self._rounds: list[RoundPlace] = []
        self._ordered = True
        self._times = (0, 0)
        self._payload_bytes = 0

    def note(self, offset: int, mono_ns: int, topic: str, payload: bytes) -> None:
        """Take the next record, and the offset of its block."""
        if offset != self._block.offset:
            self._block = Place(offset, mono_ns, self.records)
            self._spread.add(self._block)
        first, last = self._times if self.records else (mono_ns, mono_ns)
        self._ordered &= mono_ns >= last
        self._times = (first, mono_ns)
        self._payload_bytes += len(payload)
        self.records += 1
        if topic == self._round_topic and payload:
            self._note_round(payload)

    def index(self) -> Index:
        """What the index says now."""
        return Index(
            places=tuple(self._spread.places),
            rounds=tuple(self._rounds),
            ordered=self._ordered,
            records=self.records,
            payload_bytes=self._payload_bytes,
            first_mono_ns=self._times[0],
            last_mono_ns=self._times[1],
            lost=self.lost,
        )

    def _note_round(self, payload: bytes) -> None:
        try:
            round_ = min(decode_state(payload, Round).round, _MOST)
        except PeerError:
            return
        highest = self._rounds[-1].round if self._rounds else 0
        if round_ > highest and len(self._rounds) < MAX_PLACES:
            self._rounds.append(RoundPlace(round_, self._block))
