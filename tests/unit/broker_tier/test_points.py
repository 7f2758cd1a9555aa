"""What is seen at a broker means what, and which setting to change."""

from collections.abc import Callable
from typing import Any

import pytest

from iotsplit_broker.checking import points
from iotsplit_broker.checking.findings import Finding, Verdict, untested
from iotsplit_broker.checking.points import (
    ManyRetained,
    Payload,
    Qos,
    Queue,
    Retained,
    Speed,
    Takeover,
    Trip,
    Versions,
    Will,
)

GOOD: list[tuple[Callable[[Any], Finding], object]] = [
    (points.judge_versions, Versions(version5=True, announced={"ReceiveMaximum": 20})),
    (points.judge_payload, Payload(needed_bytes=61440, largest_bytes=61440, refused_bytes=61952)),
    (
        points.judge_retained,
        Retained(kept=True, whole=True, replaced=True, by_wildcard=True, cleared=True),
    ),
    (points.judge_many_retained, ManyRetained(sent=150, by_wildcard=150, asked=38, by_name=38)),
    (points.judge_will, Will(let_in=True, after_s=0.1, kept=True)),
    (points.judge_qos, Qos(acknowledged=True, granted=1, delivered=1)),
    (points.judge_takeover, Takeover(first_ended=True, second_works=True)),
    (points.judge_queue, Queue(sent=3000, acknowledged=3000, delivered=3000)),
    (points.judge_trip, Trip(agent_ms=0.5, pair_ms=0.6, network_ms=0.2)),
    (points.judge_speed, Speed(message_bytes=61440, sent=500, arrived=500, seconds=1.0)),
]


@pytest.mark.parametrize(("judge", "seen"), GOOD)
def test_what_is_as_it_should_be_is_ok_and_needs_no_setting(
    judge: Callable[[Any], Finding], seen: object
) -> None:
    finding = judge(seen)
    assert finding.verdict is Verdict.OK
    assert not finding.fails
    assert not finding.fixes
    assert finding.measured


def test_a_payload_limit_below_the_agents_chunks_fails_and_names_both_ways_out() -> None:
    finding = points.judge_payload(Payload(needed_bytes=61440, largest_bytes=20480, refused_bytes=20992))
    assert (finding.verdict, finding.fails) == (Verdict.TOO_SMALL, True)
    assert finding.said == "20 KiB; not 20.5 KiB (agents send 60 KiB)"
    assert "message_size_limit" in finding.fixes["mosquitto"]
    assert finding.fixes["agents"] == "--chunk-bytes 20480"


def test_no_chunk_is_advised_that_agents_would_refuse() -> None:
    finding = points.judge_payload(Payload(needed_bytes=61440, largest_bytes=100, refused_bytes=200))
    assert "agents" not in finding.fixes


def test_where_nothing_comes_back_payload_is_absent() -> None:
    finding = points.judge_payload(Payload(needed_bytes=61440, largest_bytes=0, refused_bytes=480))
    assert finding.verdict is Verdict.ABSENT


@pytest.mark.parametrize("broken", ["kept", "whole", "replaced", "by_wildcard", "cleared"])
def test_each_part_of_retained_messages_is_needed(broken: str) -> None:
    parts = dict.fromkeys(("kept", "whole", "replaced", "by_wildcard", "cleared"), True)
    finding = points.judge_retained(Retained(**(parts | {broken: False})))
    assert (finding.verdict, finding.fails) == (Verdict.ABSENT, True)
    assert "retain_available" in finding.fixes["mosquitto"]


def test_no_retained_messages_at_all_are_said_as_such() -> None:
    finding = points.judge_retained(
        Retained(kept=False, whole=False, replaced=False, by_wildcard=False, cleared=False)
    )
    assert finding.said == "not: set, a whole chunk, replace, wildcard, clear"


def test_a_wildcard_that_shows_a_hundred_limits_the_fleet_and_does_not_fail() -> None:
    finding = points.judge_many_retained(ManyRetained(sent=150, by_wildcard=100, asked=38, by_name=38))
    assert (finding.verdict, finding.fails) == (Verdict.TOO_SMALL, False)
    assert "fewer than 100 agents" in finding.said
    assert finding.fixes


def test_less_than_a_window_by_name_fails() -> None:
    finding = points.judge_many_retained(ManyRetained(sent=150, by_wildcard=20, asked=38, by_name=20))
    assert (finding.verdict, finding.fails) == (Verdict.TOO_SMALL, True)


def test_no_retained_message_of_many_is_absent() -> None:
    finding = points.judge_many_retained(ManyRetained(sent=150, by_wildcard=0, asked=38, by_name=0))
    assert (finding.verdict, finding.fails) == (Verdict.ABSENT, True)


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (Will(let_in=True, after_s=None, kept=False), "not heard, not retained"),
        (Will(let_in=False, after_s=None, kept=False), "a client with a retained will is not let in"),
        (Will(let_in=True, after_s=0.25, kept=False), "heard 0.25 s after the socket was cut, not retained"),
    ],
)
def test_a_last_will_has_to_be_heard_and_kept(seen: Will, said: str) -> None:
    finding = points.judge_will(seen)
    assert (finding.verdict, finding.fails, finding.said) == (Verdict.ABSENT, True, said)


def test_qos_1_that_arrives_as_0_is_flattened() -> None:
    finding = points.judge_qos(Qos(acknowledged=True, granted=0, delivered=0))
    assert (finding.verdict, finding.fails) == (Verdict.FLATTENED, True)


@pytest.mark.parametrize(
    "seen", [Qos(acknowledged=False, granted=1, delivered=1), Qos(acknowledged=True, granted=1, delivered=None)]
)
def test_qos_1_without_acknowledgement_or_delivery_is_absent(seen: Qos) -> None:
    assert points.judge_qos(seen).verdict is Verdict.ABSENT


def test_a_broker_that_gives_messages_to_the_wrong_client_fails() -> None:
    finding = points.judge_qos(Qos(acknowledged=True, granted=1, delivered=1, foreign=3))
    assert finding.fails
    assert "3 messages that nobody subscribed to" in finding.said


def test_an_earlier_client_that_stays_is_said_and_does_not_fail() -> None:
    finding = points.judge_takeover(Takeover(first_ended=False, second_works=True))
    assert (finding.verdict, finding.fails) == (Verdict.ABSENT, False)
    assert "the earlier client stays" in finding.said


def test_a_later_client_that_is_not_served_fails() -> None:
    assert points.judge_takeover(Takeover(first_ended=True, second_works=False)).fails


def test_what_was_acknowledged_and_dropped_is_counted() -> None:
    finding = points.judge_queue(Queue(sent=3000, acknowledged=3000, delivered=1020))
    assert (finding.verdict, finding.fails) == (Verdict.TOO_SMALL, False)
    assert "1980 are dropped" in finding.said
    assert "max_queued_messages" in finding.fixes["mosquitto"]


def test_a_queue_that_overflows_in_one_step_fails() -> None:
    assert points.judge_queue(Queue(sent=3000, acknowledged=3000, delivered=50)).fails


def test_a_broker_that_holds_back_acknowledgements_drops_nothing() -> None:
    finding = points.judge_queue(Queue(sent=3000, acknowledged=400, delivered=400))
    assert finding.verdict is Verdict.OK
    assert "3000 were sent" in finding.said


def test_a_queue_without_acknowledgements_is_absent() -> None:
    finding = points.judge_queue(Queue(sent=3000, acknowledged=0, delivered=0))
    assert (finding.verdict, finding.fails) == (Verdict.ABSENT, True)


@pytest.mark.parametrize("pair_ms", [40.5, 88.0])
def test_the_timers_of_tcp_are_named(pair_ms: float) -> None:
    finding = points.judge_trip(Trip(agent_ms=0.5, pair_ms=pair_ms, network_ms=0.2))
    assert (finding.verdict, finding.fails) == (Verdict.SLOW, False)
    assert "Nagle" in finding.said
    assert finding.fixes["mosquitto"] == "set_tcp_nodelay true"


def test_a_long_way_is_not_taken_for_a_slow_broker() -> None:
    assert points.judge_trip(Trip(agent_ms=152, pair_ms=155, network_ms=150)).verdict is Verdict.OK


def test_a_broker_that_is_slower_than_its_network_is_named() -> None:
    finding = points.judge_trip(Trip(agent_ms=60, pair_ms=62, network_ms=1))
    assert finding.verdict is Verdict.SLOW
    assert "network takes 1.0 ms" in finding.said


def test_few_bytes_per_second_are_slow_and_lost_ones_too_many() -> None:
    slow = points.judge_speed(Speed(message_bytes=1024, sent=10, arrived=10, seconds=1.0))
    lossy = points.judge_speed(Speed(message_bytes=1024 * 1024, sent=10, arrived=9, seconds=1.0))
    none = points.judge_speed(Speed(message_bytes=1024, sent=10, arrived=0, seconds=0.0))
    assert (slow.verdict, lossy.verdict, none.verdict) == (Verdict.SLOW, Verdict.TOO_SMALL, Verdict.SLOW)
    assert "1 of 10 messages lost" in lossy.said
    assert not slow.fails


def test_what_could_not_be_tried_fails() -> None:
    assert untested("queue", "no time").fails


def test_mqtt_5_is_not_needed() -> None:
    finding = points.judge_versions(Versions(version5=False, announced={}))
    assert (finding.verdict, finding.fails) == (Verdict.ABSENT, False)
