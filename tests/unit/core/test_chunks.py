"""Frames as chunks: any order, repetition, loss, garbage, and bounds on memory."""

import contextlib
import random
from typing import Any

import lz4.frame
import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotsplit.chunks import HEADER_BYTES, LZ4, PIECE_BYTES, RAW, Assembler, Chunk, Head, checksum, cut, read
from iotsplit.errors import ChunkMismatchError, MalformedMessageError, MessageTooLargeError, PeerError

HEAD = Head(1, "d1", "device", "edge", 1, 2, 3, 4)
FIELDS: list[object] = [*HEAD, 0, 1, 2, checksum(HEAD, b"ab"), RAW, b"ab"]
PLACES = {name: place for place, name in enumerate([*Head._fields, *Chunk._fields[1:]])}
MEBIBYTE = 1 << 20
PIECE = 100 + PIECE_BYTES  # what a piece of `pieces` costs

# Text repeats, so that some bodies are sent compressed; binary ones are sent as they are.
bodies = st.binary(max_size=3000) | st.text("ab", max_size=60).map(lambda text: text.encode() * 50)
sizes = st.integers(HEADER_BYTES + 1, HEADER_BYTES + 700)


def assembler(**limits: int) -> Assembler:
    return Assembler(**{"max_message_bytes": MEBIBYTE, "max_open_bytes": MEBIBYTE} | limits)


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that do not compress."""
    return random.Random(seed).randbytes(size)


def pieces(body: bytes, *, head: Head = HEAD, chunk_bytes: int = HEADER_BYTES + 100) -> list[Chunk]:
    return [read(payload) for payload in cut(body, head, chunk_bytes=chunk_bytes)]


def made(**changes: object) -> Chunk:
    """A chunk of two bytes with something changed."""
    fields: dict[str, Any] = changes
    return read(msgpack.packb(list(FIELDS)))._replace(**fields)


# --- whole messages


@given(bodies, sizes, st.randoms())
def test_a_body_survives_any_order_with_every_chunk_repeated(
    body: bytes, chunk_bytes: int, chance: random.Random
) -> None:
    parts = pieces(body, chunk_bytes=chunk_bytes)
    repeated = parts if len(parts) == 1 else parts[:-1] * 2
    chance.shuffle(repeated)
    joined = assembler()
    got = [joined.add("t", chunk) for chunk in repeated]
    if len(parts) > 1:
        assert got == [None] * len(got)
        got = [joined.add("t", parts[-1])]
    assert got == [body]
    assert joined.held_bytes == 0


@given(bodies, sizes)
def test_no_payload_is_larger_than_asked_for(body: bytes, chunk_bytes: int) -> None:
    longest = Head(1, "d" * 23, "device", "device", 2**63, 2**63, 2**63, 2**63)
    assert all(len(payload) <= chunk_bytes for payload in cut(body, longest, chunk_bytes=chunk_bytes))


def test_an_empty_body_is_one_chunk() -> None:
    (chunk,) = pieces(b"")
    assert assembler().add("t", chunk) == b""


def test_what_compresses_is_sent_compressed_and_what_does_not_as_it_is() -> None:
    assert {chunk.packing for chunk in pieces(b"a" * 5000)} == {LZ4}
    assert {chunk.packing for chunk in pieces(noise(5000))} == {RAW}


@given(st.binary(min_size=101, max_size=1000), st.data())
def test_a_lost_chunk_keeps_the_message_open_until_it_is_sent_again(body: bytes, data: st.DataObject) -> None:
    parts = pieces(noise(101) + body)
    lost = data.draw(st.integers(0, len(parts) - 1))
    joined = assembler()
    assert [joined.add("t", c) for c in parts if c.number != lost] == [None] * (len(parts) - 1)
    assert joined.add("t", parts[lost]) == noise(101) + body


def test_messages_of_two_senders_do_not_mix() -> None:
    one, other = pieces(noise(300)), pieces(noise(300))
    joined = assembler()
    for chunk in one[:-1]:
        assert joined.add("one", chunk) is None
    assert joined.add("other", other[-1]) is None
    assert joined.add("one", one[-1]) == noise(300)


def test_steps_that_interleave_do_not_mix() -> None:
    later = pieces(noise(300, 1), head=HEAD._replace(step=3))
    joined = assembler()
    got = [joined.add("t", c) for pair in zip(pieces(noise(300)), later, strict=True) for c in pair]
    assert [body for body in got if body is not None] == [noise(300), noise(300, 1)]


# --- garbage


@given(st.randoms(), st.lists(st.integers(0, 20), max_size=20))
def test_garbage_of_the_same_identity_does_not_spoil_what_it_imitates(
    chance: random.Random, seeds: list[int]
) -> None:
    garbage = [chance.choice(pieces(noise(300, 1000 + seed))) for seed in seeds]
    mixed = [*pieces(noise(300)), *garbage]
    chance.shuffle(mixed)
    joined = assembler()
    assert noise(300) in [joined.add("t", chunk) for chunk in mixed]


def test_a_corrupted_chunk_is_found_and_the_message_can_be_sent_again() -> None:
    parts = pieces(noise(300))
    joined = assembler()
    assert joined.add("t", parts[0]._replace(data=memoryview(b"?" * 100))) is None
    for chunk in parts[1:-1]:
        joined.add("t", chunk)
    with pytest.raises(ChunkMismatchError):
        joined.add("t", parts[-1])
    assert joined.held_bytes == 0
    assert noise(300) in [joined.add("t", chunk) for chunk in parts]


@given(st.binary(max_size=40), st.integers(0, 200))
def test_what_is_not_lz4_is_refused_as_a_mismatch(data: bytes, size: int) -> None:
    body = b"not the body"
    with pytest.raises(ChunkMismatchError):
        assembler().add("t", made(packing=LZ4, size=size, crc32=checksum(HEAD, body), data=data))


@given(st.binary(max_size=100) | st.binary(max_size=60).map(lambda tail: msgpack.packb(FIELDS)[:20] + tail))
def test_any_payload_is_read_or_refused(payload: bytes) -> None:
    try:
        read(payload)
    except PeerError:
        return
    assert isinstance(msgpack.unpackb(payload), list)


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@given(st.dictionaries(st.integers(0, len(FIELDS) - 1), plain, min_size=1, max_size=3))
def test_a_chunk_with_any_other_field_is_read_or_refused_and_never_joined_wrongly(
    changes: dict[int, object],
) -> None:
    fields = [changes.get(place, value) for place, value in enumerate(FIELDS)]
    try:
        body = assembler().add("t", read(msgpack.packb(fields)))
    except PeerError:
        return
    head = Head(*fields[: len(HEAD)])  # type: ignore[arg-type]  # as it was read
    announced = (fields[PLACES["size"]], fields[PLACES["crc32"]])
    assert body is None or (len(body), checksum(head, body)) == announced


@given(st.integers(0, 8 * len(msgpack.packb(FIELDS)) - 1))
def test_a_wrong_bit_never_makes_another_frame(place: int) -> None:
    payload = bytearray(msgpack.packb(FIELDS))
    payload[place // 8] ^= 1 << place % 8
    joined, head = None, HEAD
    with contextlib.suppress(PeerError):
        chunk = read(bytes(payload))
        joined, head = assembler().add("t", chunk), chunk.head
    assert joined in (None, b"ab")
    assert joined is None or head == HEAD


@pytest.mark.parametrize("name", ["device", "tier", "to_tier"])
def test_longer_names_than_agents_can_have_are_refused(name: str) -> None:
    fields = list(FIELDS)
    fields[PLACES[name]] = "d" * 65
    with pytest.raises(MalformedMessageError):
        read(msgpack.packb(fields))


@pytest.mark.parametrize("name", ["epoch", "step", "micro_batch", "checkpoint", "number", "size"])
def test_numbers_below_zero_are_refused(name: str) -> None:
    fields = list(FIELDS)
    fields[PLACES[name]] = -1
    with pytest.raises(MalformedMessageError):
        read(msgpack.packb(fields))


@pytest.mark.parametrize("place", range(len(FIELDS)))
def test_true_is_not_a_number_and_none_is_nothing(place: int) -> None:
    for wrong in (True, None):
        fields = list(FIELDS)
        fields[place] = wrong
        with pytest.raises(MalformedMessageError):
            read(msgpack.packb(fields))


@pytest.mark.parametrize(("number", "total"), [(1, 1), (7, 3), (0, 0)])
def test_a_number_beyond_the_total_is_refused(number: int, total: int) -> None:
    fields = list(FIELDS)
    fields[PLACES["number"]], fields[PLACES["total"]] = number, total
    with pytest.raises(ChunkMismatchError):
        read(msgpack.packb(fields))


def test_an_unknown_packing_is_refused() -> None:
    fields = list(FIELDS)
    fields[PLACES["packing"]] = 2
    with pytest.raises(MalformedMessageError, match="packing 2"):
        read(msgpack.packb(fields))


# --- bounds


def test_an_announced_size_over_the_limit_is_refused_before_anything_is_kept() -> None:
    joined = assembler(max_message_bytes=1000)
    with pytest.raises(MessageTooLargeError) as caught:
        joined.add("t", made(total=2, size=1001))
    assert (caught.value.size_bytes, caught.value.limit_bytes) == (1001, 1000)
    with pytest.raises(MessageTooLargeError):
        joined.add("t", made(total=1001))
    assert joined.held_bytes == 0


def test_a_bomb_stops_one_byte_after_what_it_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = lz4.frame.compress(bytes(100 * MEBIBYTE))
    asked: list[int] = []
    real = lz4.frame.LZ4FrameDecompressor

    class Watched:
        def decompress(self, data: bytes, max_length: int) -> bytes:
            asked.append(max_length)
            body: bytes = real().decompress(data, max_length=max_length)
            assert len(body) <= max_length
            return body

    monkeypatch.setattr(lz4.frame, "LZ4FrameDecompressor", Watched)
    with pytest.raises(ChunkMismatchError):
        assembler().add("t", made(packing=LZ4, size=1000, data=bomb))
    assert asked == [1001]


def test_a_size_that_so_few_bytes_cannot_hold_is_refused_before_room_is_made_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never() -> None:
        pytest.fail("began to decompress")

    monkeypatch.setattr(lz4.frame, "LZ4FrameDecompressor", never)
    with pytest.raises(ChunkMismatchError):
        assembler().add("t", made(packing=LZ4, size=MEBIBYTE, data=lz4.frame.compress(b"a" * 1000)))


def test_the_best_that_lz4_can_do_is_accepted() -> None:
    body = bytes(900_000)
    joined = assembler()
    assert [joined.add("t", chunk) for chunk in pieces(body)][-1] == body


def test_the_message_that_waited_longest_is_forgotten_when_memory_is_full() -> None:
    joined = assembler(max_open_bytes=15 * PIECE)
    first, second = pieces(noise(1000, 1)), pieces(noise(1000, 2))
    for chunk in [*first[:-1], *second[:-1]]:
        joined.add("t", chunk)
    assert joined.held_bytes <= 15 * PIECE
    assert joined.add("t", second[-1]) == noise(1000, 2)
    assert joined.add("t", first[-1]) is None


def test_a_message_that_still_comes_in_is_not_the_one_that_is_forgotten() -> None:
    joined = assembler(max_open_bytes=18 * PIECE)
    old, idle = pieces(noise(1000, 1)), pieces(noise(1000, 2))
    for chunk in [*old[:3], *idle[:3], *old[3:-1]]:
        joined.add("t", chunk)
    for chunk in pieces(noise(700, 3))[:-1]:
        joined.add("t", chunk)
        joined.add("t", old[0])
    assert joined.add("t", old[-1]) == noise(1000, 1)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 99), st.binary(max_size=60)), max_size=60))
def test_memory_stays_within_its_bound_whatever_comes(said: list[tuple[int, int, bytes]]) -> None:
    joined = assembler(max_open_bytes=5000)
    for step, number, data in said:
        joined.add("t", made(head=HEAD._replace(step=step), number=number, total=100, size=100, data=data))
        assert 0 <= joined.held_bytes <= 5000


def test_empty_chunks_cost_memory_too() -> None:
    joined = assembler(max_open_bytes=50_000)
    for step in range(1000):
        joined.add("t", made(head=HEAD._replace(step=step), total=2, data=b""))
    for number in range(1000):
        joined.add("t", made(number=number, total=1001, data=b""))
    assert len(joined._open) < 200
    assert sum(len(entry.pieces) for entry in joined._open.values()) < 200
