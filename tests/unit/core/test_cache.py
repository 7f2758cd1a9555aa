"""What both ends remember: the same if they are told the same, nothing wrong, no more than allowed."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotsplit.cache import Cache, CacheChange, Row, rows_of
from iotsplit.errors import MalformedMessageError
from iotsplit.settings import TrainingSettings

EACH = 3
"""Rows of a session."""


def row(sample: int, *, place: int = 0, data: bytes = b"12345678", digest: bytes = b"") -> Row:
    return Row(sample=sample, place=(place, 0, 0), data=data, digest=digest)


def cache(limit_bytes: int = 1000, held: CacheChange | None = None) -> Cache:
    return Cache("a", limit_bytes=limit_bytes, each=EACH, held=held)


def send(
    to: Cache, samples: list[int], mark: str = "x", lengths: Mapping[int, int] = MappingProxyType({})
) -> None:
    for place, sample in enumerate(samples):
        to.put(row(sample, place=place, data=f"{mark}-of-{sample}".encode() + bytes(lengths.get(sample, 0))))


def test_what_a_session_sends_counts_once_the_next_one_goes_on_from_it() -> None:
    ours = cache()
    ours.begin("s1", "")
    send(ours, [1, 2, 3])
    assert 1 not in ours
    assert ours.newest == "s1"
    ours.begin("s2", "s1")
    assert (ours[1], len(ours), ours.base) == (b"x-of-1", 3, "s1")


def test_of_a_sample_that_was_sent_twice_the_later_row_counts() -> None:
    ours = cache()
    ours.begin("s1", "")
    for place, data in ((2, b"late"), (0, b"early"), (1, b"other")):
        ours.put(row(2 if data == b"other" else 1, place=place, data=data))
    ours.begin("s2", "s1")
    assert ours[1] == b"late"


def test_a_session_that_has_gaps_is_never_gone_on_from() -> None:
    ours = cache()
    ours.begin("s1", "")
    send(ours, [1, 2, 3])
    ours.begin("s2", "s1")
    send(ours, [1, 2], "y")
    assert ours.newest == "s1"
    ours.begin("s3", "s2")  # whoever names it has got all of it
    assert len(ours) == 0


def test_a_round_that_is_done_again_goes_on_from_what_it_did_before() -> None:
    ours = cache()
    ours.begin("s1", "")
    send(ours, [1, 2, 3])
    ours.begin("s2", "s1")
    send(ours, [1, 2, 3], "y")
    ours.begin("s2r1", "s1")
    assert ours[1] == b"x-of-1"


def test_a_session_that_is_gone_on_with_keeps_what_it_has_sent() -> None:
    ours = cache()
    ours.begin("s1", "")
    send(ours, [1, 2])
    ours.begin("s1", "")
    ours.put(row(3, place=2))
    assert ours.newest == "s1"


def test_another_past_than_ours_is_forgotten() -> None:
    ours = cache()
    ours.begin("s1", "")
    send(ours, [1, 2, 3])
    ours.begin("s2", "s1")
    ours.begin("s9", "s8")
    assert len(ours) == 0


def test_a_sample_that_has_become_another_is_not_held() -> None:
    ours = cache()
    ours.begin("s1", "")
    for place in range(EACH):
        ours.put(row(place, place=place, digest=b"one"))
    ours.begin("s2", "s1")
    assert ours.holds(1, b"one")
    assert not ours.holds(1, b"two")
    assert not ours.holds(7, b"one")


def test_a_full_cache_takes_no_more_in_and_keeps_what_it_has_up_to_date() -> None:
    ours = cache(limit_bytes=2 * len(b"x-of-1"))
    ours.begin("s1", "")
    send(ours, [1, 2, 3])
    ours.begin("s2", "s1")
    assert [sample in ours for sample in (1, 2, 3)] == [True, True, False]
    send(ours, [3, 2, 4], "y")
    ours.begin("s3", "s2")
    assert (ours[1], ours[2], len(ours)) == (b"x-of-1", b"y-of-2", 2)


def test_a_sample_that_has_become_too_long_is_forgotten_and_makes_room() -> None:
    ours = cache(limit_bytes=20)
    ours.begin("s1", "")
    for place, sample in enumerate((1, 2, 3)):
        ours.put(row(sample, place=place, data=b"123456"))
    ours.begin("s2", "s1")
    ours.take_change()
    for place, (sample, size) in enumerate(((1, 9), (2, 6), (4, 6))):
        ours.put(row(sample, place=place, data=bytes(size)))
    ours.begin("s3", "s2")
    assert [sample in ours for sample in (1, 2, 3, 4)] == [False, True, True, True]
    change = ours.take_change()
    assert change is not None
    assert (change.gone, [each.sample for each in change.rows]) == ((1,), [2, 4])


def test_an_edge_makes_room_for_what_is_asked_for_now() -> None:
    edge = Cache("a", limit_bytes=20, each=EACH, is_kept=False)
    edge.begin("s2", "s1")
    assert all(edge.recall(sample, b"12345678", beside=[4, 5, 6]) for sample in range(7))
    assert [sample for sample in range(7) if sample in edge] == [2, 3, 4, 5, 6]


def test_who_has_lost_its_base_is_not_gone_on_from() -> None:
    ours = cache()
    ours.begin("s2", "s1")
    send(ours, [1, 2, 3])
    assert ours.newest == ""
    again = cache(held=ours.take_change())
    again.begin("s2", "s1")  # after a restart
    again.begin("s3", "s2")
    assert len(again) == 0


def test_an_edge_asks_for_its_base_and_is_gone_on_from() -> None:
    edge = Cache("a", limit_bytes=20, each=EACH, is_kept=False)
    edge.begin("s2", "s1")
    assert [edge.recall(sample, b"12345678", beside=range(6)) for sample in range(6)] == [True] * 5 + [False]
    send(edge, [1, 2, 3])
    assert edge.newest == "s2"


def test_a_cache_of_other_settings_does_not_fit() -> None:
    fleet = TrainingSettings(codec_cache="1kB", local_steps=1, batch_size=EACH, micro_batches=1)
    assert cache().fits(fleet)
    for change in ({"codec_cache": "2kB"}, {"local_steps": 2}):
        changes: Any = change
        assert not cache().fits(dataclasses.replace(fleet, **changes))


def test_only_a_batch_can_be_asked_for_and_each_sample_once() -> None:
    ours = cache()
    ours.begin("s1", "")
    send(ours, [1, 2, 3])
    ours.begin("s2", "s1")
    assert rows_of(ours, [3, 1, 3, 9], most=3) == {1: b"x-of-1", 3: b"x-of-3"}
    assert rows_of(None, [3], most=3) == {}
    with pytest.raises(MalformedMessageError, match="4 samples"):
        rows_of(ours, range(4), most=3)


def test_who_begins_with_nothing_says_so_to_its_disk_which_may_be_of_an_earlier_life() -> None:
    ours = cache()
    ours.begin("s1", "")
    change = ours.take_change()
    assert change is not None
    assert change.emptied


@dataclass(frozen=True)
class Session:
    samples: list[int]
    is_told: int  # of its rows, to the end that may have gaps
    saves: bool
    lengths: dict[int, int]  # that samples are longer than others; samples may become others


SESSIONS = st.lists(
    st.builds(
        Session,
        samples=st.lists(st.integers(0, 6), min_size=EACH, max_size=EACH),
        is_told=st.integers(0, EACH),
        saves=st.booleans(),
        lengths=st.dictionaries(st.integers(0, 6), st.integers(1, 40), max_size=3),
    ),
    max_size=8,
)


def after(cache: Cache) -> dict[int, bytes]:
    return {sample: cache[sample] for sample in range(7) if sample in cache}


@given(SESSIONS, st.integers(0, 60))
def test_a_device_that_has_lost_something_and_its_cloud_hold_the_same(
    sessions: list[Session], limit_bytes: int
) -> None:
    device, cloud = cache(limit_bytes), cache(limit_bytes)
    for number, session in enumerate(sessions):
        for end in (device, cloud):
            end.begin(f"s{number}", f"s{number - 1}" if number else "")
        if not len(device):
            cloud.empty()  # each of its frames says so
        assert after(device) == after(cloud)
        send(cloud, session.samples, str(number), session.lengths)
        send(device, session.samples[: session.is_told], str(number), session.lengths)


@given(SESSIONS, st.integers(0, 60))
def test_what_an_edge_with_gaps_holds_is_no_other_than_what_the_device_holds(
    sessions: list[Session], limit_bytes: int
) -> None:
    device, edge = cache(limit_bytes), cache(limit_bytes)
    for number, session in enumerate(sessions):
        for end in (device, edge):
            end.begin(f"s{number}", f"s{number - 1}" if number else "")
        assert all(edge[sample] == data for sample, data in after(device).items() if sample in edge)
        assert sum(map(len, after(device).values())) <= limit_bytes
        for sample in session.samples:
            if sample in device and sample not in edge:
                assert edge.recall(sample, device[sample], beside=session.samples)
        send(device, session.samples, str(number), session.lengths)
        send(edge, session.samples[: session.is_told], str(number), session.lengths)


@given(SESSIONS, st.integers(0, 60))
def test_what_was_written_is_the_same_cache(sessions: list[Session], limit_bytes: int) -> None:
    ours = cache(limit_bytes)
    written: list[CacheChange] = []
    for number, session in enumerate(sessions):
        ours.begin(f"s{number}", f"s{number - 1}" if number else "")
        send(ours, session.samples[: session.is_told], str(number), session.lengths)
        if session.saves and (change := ours.take_change()):
            written.append(change)
    if change := ours.take_change():
        written.append(change)
    assert ours.take_change() is None
    again = cache(limit_bytes, joined(written))
    for each in (ours, again):
        each.begin("next", each.newest)
    assert after(again) == after(ours)


def joined(written: list[CacheChange]) -> CacheChange | None:
    """What a disk makes of changes."""
    rows: dict[int, Row] = {}
    waiting: dict[tuple[str, tuple[int, int, int]], Row] = {}
    for change in written:
        rows = ({} if change.emptied else rows) | {each.sample: each for each in change.rows}
        rows = {sample: each for sample, each in rows.items() if sample not in change.gone}
        waiting = {key: each for key, each in waiting.items() if key[0] == change.session}
        waiting |= {(change.session, each.place): each for each in change.waiting}
    if not written:
        return None
    last = written[-1]
    return CacheChange(
        owner="a",
        base=last.base,
        session=last.session,
        emptied=False,
        rows=tuple(rows.values()),
        waiting=tuple(waiting.values()),
    )
