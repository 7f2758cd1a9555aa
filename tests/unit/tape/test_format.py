"""Tapes as bytes: whole, in pieces, torn and damaged."""

from collections.abc import Iterable, Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotsplit.errors import MismatchError, UsageError
from iotsplit.tape import format as tape_format
from iotsplit.tape.format import (
    END_BYTES,
    Damage,
    Decoder,
    Encoder,
    Header,
    Item,
    Record,
    index_offset,
)
from iotsplit.tape.places import MAX_PLACES, Index, Place, Spread

RECORDS = st.lists(
    st.builds(
        Record,
        mono_ns=st.integers(0, 2**60),
        wall_ns=st.integers(0, 2**60),
        topic=st.text(min_size=1, max_size=20),
        payload=st.binary(max_size=200) | st.just(tape_format.MARK * 3),
        qos=st.integers(0, 2),
        retain=st.booleans(),
        observer=st.sampled_from(["", "record-1"]),
    ),
    max_size=20,
)


def blocks(records: Iterable[Record], *, each: int = 3, end: bool = True) -> list[bytes]:
    """The pieces of a tape: its beginning, a block for every few records, its end."""
    encoder = Encoder()
    made = [encoder.begin(Header(fleet="f"))]
    for number, record in enumerate(records, 1):
        assert encoder.add(record) == b""
        if number % each == 0:
            made.append(encoder.flush())
    made.append(encoder.end() if end else encoder.flush())
    return made


def read(data: bytes, cuts: Sequence[int] = (), *, name: str = "x.tape") -> list[Item]:
    decoder = Decoder(name)
    found: list[Item] = []
    ends = [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    start = 0
    for end in ends:
        found += [item for _, item in decoder.feed(data[start:end])]
        start = end
    return found + [item for _, item in decoder.end()]


def records_in(items: Iterable[Item]) -> list[Record]:
    return [item for item in items if isinstance(item, Record)]


def damages_in(items: Iterable[Item]) -> list[Damage]:
    return [item for item in items if isinstance(item, Damage)]


def some(count: int) -> list[Record]:
    return [Record(n * 10, n * 10, f"t/{n}", bytes([n]) * 50) for n in range(count)]


@given(RECORDS, st.lists(st.integers(0, 10**6), max_size=5), st.integers(1, 5))
def test_what_is_written_is_read_in_pieces_of_any_size(
    records: list[Record], cuts: list[int], each: int
) -> None:
    items = read(b"".join(blocks(records, each=each)), cuts)
    assert isinstance(items[0], Header)
    assert isinstance(items[-1], Index)
    assert records_in(items) == records
    assert items[-1].records == len(records)
    assert damages_in(items) == []


@given(RECORDS, st.integers(0, 10**6), st.lists(st.integers(0, 10**6), max_size=3))
def test_a_tape_that_was_cut_off_gives_its_whole_blocks_and_says_what_is_torn(
    records: list[Record], cut: int, cuts: list[int]
) -> None:
    made = blocks(records, end=False)
    data = b"".join(made)
    shortest = len(made[0])
    data = data[: shortest + cut % (len(data) - shortest + 1)]
    items = read(data, cuts)
    found = records_in(items)
    assert found == records[: len(found)]
    whole = sum(len(piece) for piece, end in _ends(made) if end <= len(data))
    assert sum(damage.size_bytes for damage in damages_in(items)) == len(data) - whole
    assert all(damage.at_end for damage in damages_in(items))


def _ends(pieces: Sequence[bytes]) -> list[tuple[bytes, int]]:
    end = 0
    found = []
    for piece in pieces:
        end += len(piece)
        found.append((piece, end))
    return found


@given(st.integers(0, 10**6), st.integers(1, 255), st.lists(st.integers(0, 10**6), max_size=3))
def test_a_damaged_block_costs_its_own_records_only(at: int, flip: int, cuts: list[int]) -> None:
    records = some(12)
    made = blocks(records)
    place = at % len(made[2])
    damaged = bytearray(made[2])
    damaged[place] ^= flip
    items = read(b"".join([*made[:2], bytes(damaged), *made[3:]]), cuts)
    assert records_in(items) == records[:3] + records[6:]
    (damage,) = damages_in(items)
    assert (damage.offset, damage.size_bytes) == (len(made[0]) + len(made[1]), len(made[2]))
    assert not damage.at_end


def test_garbage_between_blocks_is_passed_over() -> None:
    made = blocks(some(6))
    garbage = tape_format.MARK + b"R" + bytes(100)
    items = read(b"".join([made[0], garbage, *made[1:]]))
    assert records_in(items) == some(6)
    assert [damage.size_bytes for damage in damages_in(items)] == [len(garbage)]


def test_what_is_added_behind_a_torn_block_is_found() -> None:
    made = blocks(some(6), end=False)
    torn = made[2][:-5]
    more = blocks(some(3), end=False)[1]
    items = read(b"".join([made[0], made[1], torn, more]))
    assert records_in(items) == some(3) + some(3)


def test_the_end_tells_where_the_index_lies() -> None:
    made = blocks(some(9))
    data = b"".join(made)
    at = index_offset(data[-END_BYTES:])
    assert at is not None
    decoder = Decoder("x.tape", offset=at)
    ((offset, index),) = list(decoder.feed(data[at:]))
    assert offset == at
    assert isinstance(index, Index)
    assert [place.records for place in index.places] == [0, 3, 6]
    assert [place.mono_ns for place in index.places] == [0, 30, 60]
    first = Decoder("x.tape", offset=index.places[2].offset)
    assert records_in(item for _, item in first.feed(data[index.places[2].offset :])) == some(9)[6:]


def test_a_tape_that_was_not_closed_has_no_index() -> None:
    data = b"".join(blocks(some(9), end=False))
    assert index_offset(data[-END_BYTES:]) is None
    assert index_offset(b"short") is None


def test_many_records_become_blocks_by_themselves() -> None:
    encoder = Encoder()
    encoder.begin(Header())
    record = Record(0, 0, "t", bytes(1000))
    made = [encoder.add(record) for _ in range(600)]
    assert sum(bool(block) for block in made) == 2


def test_places_stay_few_and_evenly_spread() -> None:
    spread = Spread()
    for number in range(5 * MAX_PLACES):
        spread.add(Place(number, number, number))
    assert len(spread.places) <= MAX_PLACES
    gaps = {b.offset - a.offset for a, b in zip(spread.places, spread.places[1:], strict=False)}
    assert gaps == {8}


@pytest.mark.parametrize(
    ("data", "told"), [(b"", "is empty"), (b"GGUF", "is no tape"), (b"x" * 99, "is no tape")]
)
def test_what_is_no_tape_is_said_to_be_none(data: bytes, told: str) -> None:
    with pytest.raises(UsageError, match=rf"x\.tape {told}"):
        read(data)


def test_another_version_of_the_format_is_refused() -> None:
    data = Encoder().begin(msgspec.structs.replace(Header(), format=2))
    with pytest.raises(MismatchError, match="format 2"):
        read(data)


def test_a_block_of_a_kind_that_is_not_known_is_passed_over() -> None:
    made = blocks(some(3))
    unknown = tape_format._block(b"?", b"later", 5)
    items = read(b"".join([made[0], unknown, *made[1:]]))
    assert records_in(items) == some(3)
    assert damages_in(items) == []


def test_a_block_that_unpacks_to_more_than_it_says_is_damaged() -> None:
    made = blocks(some(3), end=False)
    kind, stored, raw, _ = tape_format._read_head(made[1], 0) or (b"", 0, 0, 0)
    bomb = tape_format._block(kind, made[1][-stored:], raw - 1)
    items = read(made[0] + bomb)
    assert records_in(items) == []
    assert [damage.size_bytes for damage in damages_in(items)] == [len(bomb)]
