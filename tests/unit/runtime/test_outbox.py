"""The outbox: what is sent again after a lost connection, and what is let go."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from iotsplit.packet import Packet
from iotsplit.runtime.outbox import Outbox


def packet(payload: bytes = b"x", *, topic: str = "t", qos: int = 1, retain: bool = False) -> Packet:
    return Packet(topic=topic, payload=payload, qos=qos, retain=retain)


def test_what_was_not_acknowledged_waits_in_order_before_what_came_later() -> None:
    outbox = Outbox(1000)
    for number in range(3):
        outbox.sent(number, packet(bytes([number])))
    outbox.acknowledged(1)
    outbox.connection_lost()
    outbox.keep(packet(b"later"))
    assert [each.payload for each in outbox.drain()] == [b"\x00", b"\x02", b"later"]


def test_an_acknowledgement_may_come_before_the_packet_is_noted() -> None:
    outbox = Outbox(1000)
    outbox.acknowledged(7)
    outbox.sent(7, packet())
    assert len(outbox) == 0
    assert outbox.size_bytes == 0


def test_an_early_acknowledgement_does_not_reach_into_the_next_connection() -> None:
    outbox = Outbox(1000)
    outbox.acknowledged(7)
    outbox.connection_lost()
    outbox.sent(7, packet())
    assert len(outbox) == 1


def test_qos_0_is_dropped_and_counted_with_the_connection() -> None:
    outbox = Outbox(1000)
    outbox.sent(1, packet(qos=0))
    outbox.connection_lost()
    assert outbox.drain() == []
    assert outbox.dropped[0] == 1


def test_only_the_last_retained_packet_of_a_topic_waits() -> None:
    outbox = Outbox(1000)
    for payload in (b"1", b"2", b"3"):
        outbox.keep(packet(payload, topic="state", retain=True))
    outbox.keep(packet(b"other", topic="state2", retain=True))
    assert [each.payload for each in outbox.drain()] == [b"3", b"other"]


def test_over_the_limit_the_oldest_packets_go_but_no_retained_ones() -> None:
    outbox = Outbox(4)
    outbox.keep(packet(b"ss", topic="state", retain=True))
    for payload in (b"11", b"22", b"33"):
        outbox.keep(packet(payload))
    assert [each.payload for each in outbox.drain()] == [b"ss", b"33"]
    assert outbox.dropped[1] == 2


def test_a_packet_larger_than_the_limit_waits_alone() -> None:
    outbox = Outbox(4)
    outbox.keep(packet(b"123456"))
    assert outbox.has_room(1) is False
    assert [each.payload for each in outbox.drain()] == [b"123456"]


def test_there_is_room_up_to_the_limit_and_always_in_an_empty_outbox() -> None:
    outbox = Outbox(4)
    assert outbox.has_room(9)
    outbox.sent(1, packet(b"12"))
    assert outbox.has_room(2)
    assert not outbox.has_room(3)


def test_signs_of_life_go_before_what_waits_for_its_turn() -> None:
    outbox = Outbox(1000)
    for payload, qos in ((b"1", 1), (b"2", 1), (b"a", 0), (b"b", 0)):
        outbox.queue(packet(payload, qos=qos))
    assert outbox.first() == packet(b"a", qos=0)
    assert (outbox.waiting, outbox.waiting_bytes, len(outbox)) == (4, 4, 4)
    assert [outbox.take_first().payload for _ in range(4)] == [b"a", b"b", b"1", b"2"]
    assert outbox.first() is None


def test_a_hundred_signs_of_life_wait_and_of_more_the_oldest_go() -> None:
    outbox = Outbox(1000)
    for number in range(102):
        outbox.queue(packet(bytes([number]), qos=0))
    assert outbox.waiting == 100
    assert outbox.take_first().payload == b"\x02"
    assert outbox.dropped[0] == 2


def test_what_waited_for_its_turn_waits_for_the_next_connection_after_what_had_gone_out() -> None:
    outbox = Outbox(1000)
    outbox.sent(1, packet(b"1"))
    outbox.queue(packet(b"2"))
    outbox.queue(packet(b"gone", qos=0))
    outbox.connection_lost()
    assert [each.payload for each in outbox.drain()] == [b"1", b"2"]


def test_only_what_the_broker_has_to_acknowledge_is_in_flight() -> None:
    outbox = Outbox(1000)
    outbox.sent(1, packet(b"12345"))
    outbox.sent(2, packet(b"12", qos=0))
    outbox.sent(3, packet())
    assert (outbox.in_flight, outbox.in_flight_bytes) == (2, 12 + 8)
    outbox.acknowledged(1)
    assert (outbox.in_flight, outbox.in_flight_bytes) == (1, 8)
    outbox.connection_lost()
    assert (outbox.in_flight, outbox.in_flight_bytes) == (0, 0)


step = st.one_of(
    st.tuples(st.just("sent"), st.integers(1, 6), st.integers(0, 1), st.booleans(), st.integers(0, 9)),
    st.tuples(st.just("acknowledged"), st.integers(1, 6)),
    st.tuples(st.just("lost")),
    st.tuples(st.just("keep"), st.integers(0, 1), st.booleans(), st.integers(0, 9)),
    st.tuples(st.just("queue"), st.integers(0, 1), st.booleans(), st.integers(0, 9)),
    st.tuples(st.just("take")),
    st.tuples(st.just("drain")),
)


def do(outbox: Outbox, message_id: int, what: str | int, more: Sequence[str | int]) -> None:
    match what, more:
        case "sent", [int(), qos, retain, size]:
            outbox.sent(message_id, packet(bytes(int(size)), qos=int(qos), retain=bool(retain)))
        case "acknowledged", [back]:
            outbox.acknowledged(message_id - int(back))
        case "lost", _:
            outbox.connection_lost()
        case "keep" | "queue", [qos, retain, size]:
            take = outbox.keep if what == "keep" else outbox.queue
            take(packet(bytes(int(size)), qos=int(qos), retain=bool(retain)))
        case "take", _ if outbox.first() is not None:
            assert outbox.first() == outbox.take_first()
        case "drain", _:
            outbox.drain()


@given(st.lists(step, max_size=60))
def test_the_size_is_that_of_what_is_held(steps: list[tuple[str | int, ...]]) -> None:
    outbox = Outbox(20)
    for message_id, (what, *more) in enumerate(steps):
        do(outbox, message_id, what, more)
    assert (outbox.in_flight == 0) == (outbox.in_flight_bytes == 0)
    outbox.connection_lost()
    held = outbox.size_bytes
    assert sum(len(each.payload) for each in outbox.drain()) == held
    assert outbox.size_bytes == 0
