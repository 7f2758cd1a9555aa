"""An edge's checkpoints on the broker: cut, put together again, cleared."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotsplit.errors import MalformedMessageError
from iotsplit.retained import WINDOW, Pieces, clear_checkpoint, cut_checkpoint
from iotsplit.states import CHECKPOINT_SLOTS, EPOCHS_APART, CheckpointChunk, CheckpointHead, Forget
from iotsplit.topics import Topics

PLACE = ("d1", "r-t1-d1", 4, 10)


def cut(body: bytes, chunk_bytes: int = 10) -> tuple[list[CheckpointChunk], CheckpointHead]:
    return cut_checkpoint(body, place=PLACE, every=5, tokens=7, chunk_bytes=chunk_bytes)


def pieces_of(head: CheckpointHead) -> Pieces:
    return Pieces(head.path, range(head.chunks), size_bytes=head.size_bytes, sha256=head.sha256)


@given(st.binary(min_size=1, max_size=600), st.integers(1, 30), st.randoms())
def test_a_checkpoint_comes_back_in_any_order(body: bytes, chunk_bytes: int, chance: random.Random) -> None:
    chunks, head = cut(body, chunk_bytes)
    chance.shuffle(chunks)
    pieces = pieces_of(head)
    *before, last = [pieces.add(chunk.index, chunk.data) for chunk in chunks]
    assert before == [None] * len(before)
    assert last == body


def test_a_head_tells_what_is_in_the_checkpoint() -> None:
    chunks, head = cut(b"a" * 25)
    assert (head.device, head.session, head.epoch, head.step, head.tokens) == (*PLACE, 7)
    assert (head.chunks, head.size_bytes) == (len(chunks), 25) == (3, 25)
    assert [(chunk.device, chunk.name, chunk.index) for chunk in chunks] == [
        ("d1", head.name, index) for index in range(3)
    ]


def topics_of(places: list[tuple[str, str, int, int]]) -> set[str]:
    made = [cut_checkpoint(b"a", place=place, every=5, tokens=1, chunk_bytes=9)[1] for place in places]
    return {Topics("plant").topic_of(head) for head in made}


def test_checkpoints_that_may_count_at_the_same_time_never_lie_on_the_same_topic() -> None:
    near = [("d1", "r-t1-d1", epoch, step) for epoch in range(3, 3 + EPOCHS_APART) for step in (10, 15, 20)]
    assert len(topics_of(near)) == len(near)


def test_topics_of_checkpoints_come_again() -> None:
    many = [("d1", f"r-t{epoch}-d1", epoch, step) for epoch in range(1, 200) for step in range(5, 100, 5)]
    assert len(topics_of(many)) == EPOCHS_APART * CHECKPOINT_SLOTS


def test_pieces_lie_where_they_are_looked_for() -> None:
    chunks, head = cut(b"a" * 25)
    root = Topics("plant").root
    assert {Topics("plant").topic_of(chunk) for chunk in chunks} == {
        root + topic for topic in pieces_of(head).interests
    }


def test_clearing_takes_the_head_first_and_then_every_piece() -> None:
    chunks, head = cut(b"a" * 25)
    topics = [Topics("plant").topic_of(head), *(Topics("plant").topic_of(chunk) for chunk in chunks)]
    cleared = clear_checkpoint(head)
    assert all(isinstance(message, Forget) for message in cleared)
    assert [Topics("plant").topic_of(message) for message in cleared] == topics


# --- pieces


def test_only_what_is_missing_is_looked_for_a_few_at_a_time() -> None:
    _, head = cut(b"a" * 400)
    pieces = pieces_of(head)
    assert pieces.interests == {f"{head.path}/{index}" for index in range(WINDOW)}
    pieces.add(3, b"a" * 10)
    assert pieces.interests == {f"{head.path}/{index}" for index in range(WINDOW + 1) if index != 3}


def test_pieces_that_do_not_exist_change_nothing() -> None:
    chunks, head = cut(b"a" * 25)
    pieces = pieces_of(head)
    for index in (3, 99, -1):
        assert pieces.add(index, b"x") is None
    assert [pieces.add(chunk.index, chunk.data) for chunk in chunks] == [None, None, b"a" * 25]


def test_a_wrong_piece_is_found_when_the_body_is_whole() -> None:
    chunks, head = cut(b"a" * 25)
    pieces = pieces_of(head)
    pieces.add(0, b"b" * 10)
    pieces.add(1, chunks[1].data)
    with pytest.raises(MalformedMessageError, match="does not match its digest"):
        pieces.add(2, chunks[2].data)
