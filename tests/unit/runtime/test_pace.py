"""The pace of a connection: never above the rate in any second, and close to it while something waits."""

import bisect
import itertools
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotsplit.limits import PACKET_BYTES, BrokerLimits, limits_of
from iotsplit.packet import Packet
from iotsplit.runtime.pace import SLACK_S, Pace, TokenBucket, size_of

rates = st.integers(1, 2_000_000)


def taken(bucket: TokenBucket, counts: Sequence[int], waits: Callable[[int], float]) -> list[float]:
    """When each was taken by a sender that comes so much later than it may."""
    now, times = 100.0, []
    for place, count in enumerate(counts):
        now = bucket.due(count, now) + waits(place)
        assert bucket.due(count, now) == now
        bucket.take(count, now)
        times.append(now)
    return times


def most_in_a_second(times: Sequence[float], counts: Sequence[int]) -> int:
    """The largest sum of any window of a second."""
    before = [0, *itertools.accumulate(counts)]
    ends = [bisect.bisect_left(times, start + 1.0) for start in times]
    return max(before[end] - before[place] for place, end in enumerate(ends))


@given(
    rate=rates,
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=80),
    late_s=st.lists(st.sampled_from([0.0, 0.0, 1e-4, 0.003, 0.04, 0.7, 3.0]), min_size=1, max_size=7),
)
def test_no_second_ever_has_more_than_the_rate(rate: int, shares: list[float], late_s: list[float]) -> None:
    counts = [max(1, int(rate * share)) for share in shares]
    times = taken(TokenBucket(rate), counts, lambda place: late_s[place % len(late_s)])
    assert most_in_a_second(times, counts) <= rate


@pytest.mark.parametrize("rate", [1, 9, 90, 900])
def test_messages_go_out_at_the_rate_by_a_sender_that_is_a_little_late(rate: int) -> None:
    count = rate * 5 + 1
    times = taken(TokenBucket(rate), [1] * count, lambda place: 0.0005)
    assert (count - 1) / (times[-1] - times[0]) >= 0.95 * rate
    assert most_in_a_second(times, [1] * count) <= rate


@pytest.mark.parametrize("rate", ["30KB/s", "100KB/s", "471859B/s", "1MB/s", "7MB/s"])
def test_chunks_go_out_at_19_of_20_parts_of_the_rate_or_more_and_never_above(rate: str) -> None:
    limits = limits_of("", [rate])
    assert limits.bytes_per_s is not None
    packet = Packet(topic="iotsplit/default/wan/cloud/edge-1/press-r1", payload=bytes(limits.chunk_bytes(None)))
    size = size_of(packet)
    assert size <= len(packet.payload) + PACKET_BYTES
    pace, now, times = Pace(limits), 50.0, []
    while now < 60.0:
        now = pace.due(packet, now) + 0.0005
        pace.take(packet, now)
        times.append(now)
    assert size * (len(times) - 1) / (times[-1] - times[0]) >= 0.95 * limits.bytes_per_s
    assert most_in_a_second(times, [size] * len(times)) <= limits.bytes_per_s


@given(rate=rates, shares=st.lists(st.floats(0, 1), min_size=2, max_size=60))
def test_the_rate_is_used_but_for_what_the_next_does_not_fit_into(rate: int, shares: list[float]) -> None:
    counts = [max(1, int(rate * share)) for share in shares]
    times = taken(TokenBucket(rate), counts, lambda place: 0.0)
    # Greedy: whenever something waits, it and the second before it would have been more than the rate.
    for place in range(1, len(times)):
        earlier = zip(times[:place], counts[:place], strict=True)
        spread = times[place] <= times[place - 1] + counts[place - 1] / rate + 1e-6
        last = sum(count for at, count in earlier if at >= times[place] - 1.0 - 1e-6)
        assert spread or last + counts[place] > rate


def test_tokens_are_spread_over_the_second() -> None:
    times = taken(TokenBucket(10), [1] * 10, lambda place: 0.0)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert gaps == pytest.approx([0.1 - SLACK_S] + [0.1] * 8)


def test_after_a_rest_nothing_bursts() -> None:
    bucket = TokenBucket(10)
    bucket.take(1, 0.0)
    times = taken(bucket, [1] * 5, lambda place: 0.0)
    assert times[-1] - times[0] >= 0.3


def test_more_than_a_second_of_tokens_goes_alone() -> None:
    bucket = TokenBucket(10)
    bucket.take(3, 0.0)
    assert bucket.due(50, 0.1) == 1.0
    bucket.take(50, 1.0)
    assert bucket.due(1, 1.0) == 6.0 - SLACK_S


def test_a_packet_waits_for_the_slower_of_both_rates() -> None:
    pace = Pace(BrokerLimits(publishes_per_s=100, bytes_per_s=1000))
    small, large = Packet(topic="t", payload=b""), Packet(topic="t", payload=bytes(493))
    assert size_of(large) == 501
    pace.take(large, 0.0)
    assert pace.due(small, 0.0) == pytest.approx(0.501 - SLACK_S)
    assert pace.due(large, 0.0) == 1.0


def test_without_rates_everything_goes_at_once() -> None:
    pace = Pace(BrokerLimits())
    packet = Packet(topic="t", payload=bytes(10_000_000))
    pace.take(packet, 0.0)
    pace.take_request(0.0)
    assert (pace.due(packet, 0.0), pace.request_due(0.0), pace.has_room(10**6, 10**9)) == (0.0, 0.0, True)


def test_a_second_of_packets_may_wait_and_no_more() -> None:
    pace = Pace(BrokerLimits(publishes_per_s=10, bytes_per_s=1000))
    assert pace.has_room(10, 1000)
    assert not pace.has_room(11, 0)
    assert not pace.has_room(1, 1001)


def test_requests_have_a_rate_of_their_own() -> None:
    pace = Pace(BrokerLimits(requests_per_s=4, publishes_per_s=1))
    pace.take_request(0.0)
    assert pace.request_due(0.0) == pytest.approx(0.25 - SLACK_S)
    assert pace.due(Packet(topic="t", payload=b""), 0.0) == 0.0
