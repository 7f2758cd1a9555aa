"""Adapter versions: cut, and fetched in any order through small windows."""

import random
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from iotsplit.errors import MalformedMessageError
from iotsplit.plan import Tier
from iotsplit.retained import MAX_SECTION_BYTES, WINDOW, Fetch, cut_version, digest
from iotsplit.states import (
    AdapterChunk,
    AdapterHead,
    AdapterSection,
    decode_state,
    encode_state,
)

SECTIONS = {"device": b"d" * 900, "edge": b"e" * 25, "cloud": b"c" * 10}


def version(
    sections: Mapping[Any, bytes] | None = None, *, number: int = 3, chunk_bytes: int = 10
) -> tuple[list[AdapterChunk], AdapterHead]:
    return cut_version(
        SECTIONS if sections is None else sections,
        version=number,
        round_=2,
        model="m",
        peft={"r": 8},
        chunk_bytes=chunk_bytes,
    )


def fetch_from(
    fetch: Fetch, chunks: list[AdapterChunk], head: AdapterHead, chance: random.Random | None = None
) -> list[int]:
    """Give a fetch what a broker would send for its interests, until it is whole; how many topics at a time."""
    retained: dict[str, AdapterChunk | AdapterHead] = {f"adapter/{head.version}/head": head}
    retained |= {f"adapter/{chunk.version}/{chunk.index}": chunk for chunk in chunks}
    windows: list[int] = []
    subscribed: frozenset[str] = frozenset()
    while fetch.body is None:
        new = sorted(fetch.interests - subscribed)
        assert new, "waits for what will never come"
        subscribed = fetch.interests
        windows.append(len(subscribed))
        if chance is not None:
            chance.shuffle(new)
        for topic in new:
            fetch.add(retained[topic])
    return windows


@given(
    st.dictionaries(
        st.sampled_from(["device", "edge", "cloud"]), st.binary(min_size=1, max_size=800), min_size=1
    ),
    st.integers(1, 40),
    st.randoms(),
)
def test_every_section_comes_back_in_any_order_through_windows(
    sections: dict[Tier, bytes], chunk_bytes: int, chance: random.Random
) -> None:
    chunks, head = version(sections, chunk_bytes=chunk_bytes)
    for name, body in sections.items():
        fetch = Fetch(3, name, expected=digest(head))
        assert max(fetch_from(fetch, chunks, head, chance)) <= WINDOW
        assert fetch.body == body
        assert fetch.interests == frozenset()


def test_a_reader_asks_only_for_chunks_of_its_section() -> None:
    _, head = version()
    fetch = Fetch(3, "edge")
    fetch.add(head)
    assert fetch.interests == {"adapter/3/90", "adapter/3/91", "adapter/3/92"}


def test_no_chunk_belongs_to_two_sections() -> None:
    chunks, head = version()
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert all(0 < len(chunk.data) <= 10 for chunk in chunks)
    ends = [(section.first, section.first + section.chunks) for section in head.sections.values()]
    assert ends == [(0, 90), (90, 93), (93, 94)]


def test_the_window_moves_on_as_chunks_arrive() -> None:
    chunks, head = version()
    fetch = Fetch(3, "device")
    fetch.add(head)
    assert fetch.interests == {f"adapter/3/{index}" for index in range(32)}
    fetch.add(chunks[5])
    assert fetch.interests == {f"adapter/3/{index}" for index in range(33) if index != 5}


def test_repeated_and_foreign_chunks_change_nothing() -> None:
    chunks, head = version()
    fetch = Fetch(3, "edge")
    assert not fetch.add(chunks[90])  # before the head
    fetch.add(head)
    before = fetch.interests
    fetch.add(chunks[0])
    fetch.add(AdapterChunk(version=4, index=90, data=b"x"))
    assert fetch.interests == before
    assert [fetch.add(chunks[at]) for at in (90, 90, 91, 92)] == [False, False, False, True]
    assert not fetch.add(chunks[90])
    assert fetch.body == SECTIONS["edge"]


def test_a_head_that_comes_again_keeps_what_was_fetched() -> None:
    chunks, head = version()
    fetch = Fetch(3, "edge")
    for piece in (head, chunks[90], head):
        fetch.add(piece)
    assert fetch.interests == {"adapter/3/91", "adapter/3/92"}


def test_another_head_of_the_same_number_begins_anew() -> None:
    chunks, head = version()
    fetch = Fetch(3, "edge")
    for piece in (head, chunks[90], replace(head, round=9)):
        fetch.add(piece)
    assert "adapter/3/90" in fetch.interests


def test_a_head_of_another_digest_is_not_the_assignments() -> None:
    _, head = version()
    _, other = version(SECTIONS | {"edge": b"x" * 25})
    fetch = Fetch(3, "edge", expected=digest(head))
    fetch.add(other)
    assert fetch.interests == {"adapter/3/head"}


def test_wrong_bytes_are_found_and_everything_is_fetched_again() -> None:
    chunks, head = version()
    fetch = Fetch(3, "cloud", expected=digest(head))
    fetch.add(head)
    with pytest.raises(MalformedMessageError, match="does not match its digest"):
        fetch.add(replace(chunks[93], data=b"wrong bytes"))
    assert fetch.body is None
    # The chunk's topic is subscribed to already: only what is new comes again.
    assert fetch.interests == {"adapter/3/head"}
    fetch_from(fetch, chunks, head)
    assert fetch.body == SECTIONS["cloud"]


def test_a_head_without_the_section_is_refused() -> None:
    _, head = version({"edge": b"x"})
    with pytest.raises(MalformedMessageError, match="no usable section device"):
        Fetch(3, "device").add(head)


@pytest.mark.parametrize(("chunks", "size"), [(0, 0), (-1, 5), (7, 5), (1, MAX_SECTION_BYTES), (1, -5)])
def test_a_section_of_impossible_size_is_refused(chunks: int, size: int) -> None:
    _, head = version()
    section = AdapterSection(first=0, chunks=chunks, size_bytes=size, sha256="0")
    with pytest.raises(MalformedMessageError, match="no usable section"):
        Fetch(3, "edge").add(replace(head, sections={"edge": section}))


def test_a_section_of_a_billion_chunks_costs_no_more_than_its_window() -> None:
    _, head = version()
    section = AdapterSection(
        first=0, chunks=MAX_SECTION_BYTES - 1, size_bytes=MAX_SECTION_BYTES - 1, sha256="0"
    )
    fetch = Fetch(3, "edge")
    fetch.add(replace(head, sections={"edge": section}))
    assert len(fetch.interests) == WINDOW


json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(-1e300, 1e300) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(), json, max_size=4))
def test_a_digest_is_the_same_for_who_reads_the_head(peft: dict[str, Any]) -> None:
    _, head = version()
    head = replace(head, peft=peft)
    assert digest(decode_state(encode_state(head), AdapterHead)) == digest(head)
