"""Limits of shared brokers: the table, the rates that beat it, and filters that have to take turns."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotsplit import chunks, limits
from iotsplit.errors import UsageError
from iotsplit.limits import NO_LIMITS, PACKET_BYTES, PROFILES, BrokerLimits, fitting, is_chunk, limits_of
from iotsplit.options import AgentOptions, BrokerOptions
from iotsplit.states import AdapterChunk, AdapterHead, CheckpointChunk
from iotsplit.topics import PATHS, Topics

PAGE = Path(__file__).parents[3] / "docs" / "broker-limits.md"


def told(profile: str = "", *rates: str) -> str:
    with pytest.raises(UsageError) as caught:
        limits_of(profile, rates)
    return str(caught.value)


def test_without_a_profile_nothing_waits() -> None:
    assert limits_of("") == NO_LIMITS
    assert not NO_LIMITS.are_paced
    assert NO_LIMITS.chunk_bytes(None) == limits.CHUNK_BYTES == chunks.CHUNK_BYTES


def test_a_profile_uses_nine_tenths_of_its_rates() -> None:
    aws = limits_of("aws")
    assert (aws.publishes_per_s, aws.bytes_per_s, aws.slashes, aws.window) == (90, 471_859, 7, 100)


def test_a_rate_of_ones_own_beats_the_profiles_and_is_used_whole() -> None:
    assert limits_of("emqx-serverless", ["20/s"]).publishes_per_s == 20
    both = limits_of("aws", ["5/s", "1.5 MB/s"])
    assert (both.publishes_per_s, both.bytes_per_s, both.slashes) == (5, 1_500_000, 7)
    assert limits_of("", ["64KiB/s"]).bytes_per_s == 65_536


def test_what_is_no_profile_or_rate_is_told_with_what_would_be() -> None:
    assert told("gcp") == "profile 'gcp' is unknown; use one of aws, azure, emqx-serverless, small"
    form = "write 10/s for publishes, 500KB/s for bytes, or both"
    for rate in ("fast", "10", "-1/s", "500KB", "1TB/s", "nan/s", ""):
        assert told("", rate) == f"max_rate {rate!r} is no rate; {form}"
    assert told("", "0/s") == "max_rate '0/s' is too small for a fleet; use 1/s or more"
    assert told("", "1KB/s") == "max_rate '1KB/s' is too small for a fleet; use 8192B/s or more"
    assert told("", "1/s", "2/s") == "max_rate has two rates of one kind, 1/s,2/s; leave one out"


@pytest.mark.parametrize("profile", PROFILES)
def test_a_chunk_fits_each_limit_of_its_profile(profile: str) -> None:
    kept = limits_of(profile)
    packet = kept.chunk_bytes(None) + PACKET_BYTES
    for most in (kept.message_bytes, kept.window_bytes, kept.bytes_per_s):
        assert most is None or packet <= most
    assert packet > 50_000


@given(rate=st.integers(8192, 50_000_000))
def test_chunks_fill_a_second(rate: int) -> None:
    packet = limits_of("", [f"{rate}B/s"]).chunk_bytes(None) + PACKET_BYTES
    assert packet <= limits.CHUNK_BYTES + PACKET_BYTES
    assert rate // packet * packet > 0.95 * rate


def test_a_chunk_that_a_person_asks_for_beats_the_profile_but_not_the_rate() -> None:
    assert limits_of("small").chunk_bytes(100_000) == 100_000
    with pytest.raises(UsageError) as caught:
        limits_of("", ["50KB/s"]).chunk_bytes(61440)
    assert str(caught.value) == (
        "chunk_bytes 61440 is more than may be sent in a second (50000 bytes);"
        " use 49744 or less, or a higher --max-rate"
    )


def test_a_prefix_that_makes_topics_too_deep_is_told_before_anything_starts() -> None:
    assert BrokerOptions(profile="aws", topic_prefix="plant7/line3/").limits.slashes == 7
    with pytest.raises(UsageError) as caught:
        AgentOptions(profile="aws", topic_prefix="plant7/line3/cell2/")
    assert str(caught.value) == (
        "topics below plant7/line3/cell2/iotsplit/default/ have up to 8 slashes; aws allows 7;"
        " use a --topic-prefix of at most 2 words"
    )


def test_the_deepest_topic_is_one_that_is_said() -> None:
    deepest = max(path.count("/") + 1 for path in PATHS.values() if not path.startswith("{"))
    assert Topics("f").slashes == 2 + 3 >= 1 + deepest


def test_an_agents_largest_message_follows_from_its_options() -> None:
    assert AgentOptions().largest_bytes == 61440
    assert AgentOptions(profile="azure").largest_bytes == 900_000 // 15 - PACKET_BYTES
    assert AgentOptions(profile="azure", chunk_bytes=1000).largest_bytes == 1000
    with pytest.raises(UsageError):
        AgentOptions(max_rate=("9KB/s",), chunk_bytes=61440)


words = st.from_regex(r"[A-Za-z0-9_-]{1,5}", fullmatch=True)


@given(numbers=st.sets(st.integers(0, 300)), heads=st.sets(words, max_size=6), most=st.integers(1, 12))
def test_chunks_take_turns_and_all_have_theirs(numbers: set[int], heads: set[str], most: int) -> None:
    root = "p/iotsplit/f/"
    own = frozenset(f"{root}state/{word}" for word in heads)
    missing = frozenset(f"{root}adapter/3/{number}" for number in numbers)
    held: frozenset[str] = frozenset()
    if len(own) >= most:
        assert fitting(own | missing, held, most) <= own
        return
    while missing:
        held = fitting(own | missing, held, most)
        assert own <= held
        assert len(held) <= most
        assert held & missing
        missing -= held


def test_what_is_subscribed_to_stays_while_it_is_wanted() -> None:
    held = frozenset({"r/adapter/1/7", "r/adapter/1/8"})
    wanted = frozenset(f"r/adapter/1/{number}" for number in range(9))
    assert fitting(wanted, held, 3) == held | {"r/adapter/1/0"}
    assert fitting(wanted, held, None) == wanted


def test_chunks_are_known_by_their_topics() -> None:
    topics = Topics("f", "plant/3/")
    chunk = CheckpointChunk(device="7", name="0.1", index=4, data=b"")
    assert is_chunk(topics.topic_of(AdapterChunk(version=3, index=12, data=b"")))
    assert is_chunk(topics.topic_of(chunk))
    assert not is_chunk(f"{topics.root}state/7")
    assert not is_chunk(f"{topics.root}checkpoint/7/+/head")
    assert not is_chunk(topics.topic_of(AdapterHead(version=3, round=1, model="m", sections={}, peft={})))


def test_the_page_says_what_the_table_says() -> None:
    said = dict(re.findall(r"^\| `(\w+)` (\|.*\|)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    for field in fields(BrokerLimits):
        stated = [getattr(each, field.name) for each in PROFILES.values()]
        cells = ["-" if number is None else f"{number:,}" for number in stated]
        assert said[field.name] == f"| {' | '.join(cells)} |"
