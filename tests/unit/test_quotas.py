"""What holds agents to a service's limits: it reads MQTT as paho writes it, and finds each kind of breach."""

import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotsplit.limits import PROFILES
from iotsplit.packet import Packet
from iotsplit.runtime.pace import size_of
from iotsplit.runtime.proxy import DOWN, UP
from tests import mqtt_packets as mqtt
from tests.mqtt_packets import MalformedError, Publish, Raw, Stream
from tests.quotas import SERVICES, Meter, Quota, Service

topics = st.text(st.characters(exclude_characters="#+\0", exclude_categories=["Cs"]), min_size=1, max_size=40)
publishes = st.builds(
    Publish,
    topic=topics,
    qos=st.integers(0, 2),
    retain=st.booleans(),
    packet_id=st.integers(1, 65535),
    payload=st.binary(max_size=300),
)


def packed(kind: int, flags: int, body: bytes) -> bytes:
    length, rest = bytearray(), len(body)
    while not length or rest:
        rest, low = rest >> 7, rest & 127
        length.append(low | (128 if rest else 0))
    return bytes([kind << 4 | flags]) + length + body


def text(words: str) -> bytes:
    return len(words.encode()).to_bytes(2, "big") + words.encode()


def publish(
    topic: str = "a/b", payload: bytes = b"", *, qos: int = 1, retain: bool = False, number: int = 1
) -> bytes:
    head = text(topic) + (number.to_bytes(2, "big") if qos else b"")
    return packed(mqtt.PUBLISH, qos << 1 | retain, head + payload)


def subscribe(filters: Sequence[str], qos: int = 1) -> bytes:
    return packed(mqtt.SUBSCRIBE, 2, b"\0\1" + b"".join(text(each) + bytes([qos]) for each in filters))


def unsubscribe(filters: Sequence[str]) -> bytes:
    return packed(mqtt.UNSUBSCRIBE, 2, b"\0\1" + b"".join(map(text, filters)))


def acknowledged(number: int) -> bytes:
    return packed(mqtt.PUBACK, 0, number.to_bytes(2, "big"))


def breaches(service: Service, *said: bytes, every_s: float = 1.0) -> list[str]:
    quota = Quota(service)
    found = [quota.breach(UP, data, place * every_s) for place, data in enumerate(said)]
    return [re.split(", | of a/", breach)[0] for breach in found]


@given(packets=st.lists(publishes, max_size=8), cuts=st.lists(st.integers(1, 400), min_size=1, max_size=5))
def test_packets_are_read_whichever_way_the_stream_is_cut(packets: list[Publish], cuts: list[int]) -> None:
    said = [publish(p.topic, p.payload, qos=p.qos, retain=p.retain, number=p.packet_id or 0) for p in packets]
    data, stream, read, turn = b"".join(said), Stream(), [], 0
    while data:
        piece, data = data[: cuts[turn % len(cuts)]], data[cuts[turn % len(cuts)] :]
        read += list(stream.feed(piece))
        turn += 1
    assert [raw.size_bytes for raw in read] == [len(each) for each in said]
    for raw, packet in zip(read, packets, strict=True):
        found = mqtt.read_publish(raw)
        assert (found.topic, found.payload, found.qos) == (packet.topic, packet.payload, packet.qos)
        assert (found.retain, found.packet_id) == (packet.retain, packet.packet_id if packet.qos else None)


@given(filters=st.lists(topics, min_size=1, max_size=9), qos=st.integers(0, 2))
def test_filters_are_read(filters: list[str], qos: int) -> None:
    [asked, ended] = Stream().feed(subscribe(filters, qos) + unsubscribe(filters))
    assert mqtt.read_filters(asked) == [(each, qos) for each in filters]
    assert [name for name, _ in mqtt.read_filters(ended)] == filters


@given(data=st.binary(max_size=60))
def test_garbage_is_refused_or_waited_for(data: bytes) -> None:
    try:
        for raw in Stream().feed(data):
            mqtt.read_publish(raw)
            mqtt.read_filters(raw)
    except (MalformedError, UnicodeDecodeError):
        pass


@given(topic=topics, payload=st.binary(max_size=300), qos=st.integers(0, 1), more=st.sampled_from([0, 20_000]))
def test_the_size_of_a_packet_is_what_goes_over_the_wire(
    topic: str, payload: bytes, qos: int, more: int
) -> None:
    payload += bytes(more)
    assert size_of(Packet(topic=topic, payload=payload, qos=qos)) == len(publish(topic, payload, qos=qos))


def test_a_packet_that_ends_within_its_topic_is_refused() -> None:
    with pytest.raises(MalformedError):
        mqtt.read_publish(Raw(kind=3, flags=0, body=b"\0\5ab", size_bytes=6))


def test_each_limit_of_a_packet_is_held() -> None:
    assert breaches(Service(packet_bytes=20), publish(payload=bytes(11)), publish(payload=bytes(12))) == [
        "",
        "size",
    ]
    assert breaches(Service(), publish(qos=2)) == ["QoS 2"]
    assert breaches(Service(retained=False), publish(), publish(retain=True)) == ["", "retained"]
    assert breaches(Service(slashes=1), publish("a/b"), publish("a/b/c")) == ["", "slashes"]


def test_packets_under_way_are_counted_until_they_are_acknowledged() -> None:
    quota = Quota(Service(window=2))
    assert not quota.breach(UP, publish(number=1) + publish(number=2), 0.0)
    assert not quota.breach(DOWN, acknowledged(1), 0.0)
    assert not quota.breach(UP, publish(number=3), 0.0)
    assert quota.breach(UP, publish(number=4), 0.0) == "window of a/b"


def test_bytes_under_way_are_counted_but_one_packet_may_always_be() -> None:
    quota = Quota(Service(window_bytes=100))
    assert not quota.breach(UP, publish(payload=bytes(300), number=1), 0.0)
    assert quota.breach(UP, publish(number=2), 0.0) == "bytes in flight of a/b"


def test_rates_let_a_second_of_them_burst_and_then_no_more() -> None:
    said = [publish(number=number) for number in range(1, 5)]
    assert breaches(Service(publishes_per_s=3), *said, every_s=0.0) == ["", "", "", "publishes"]
    assert breaches(Service(publishes_per_s=3), *said, every_s=0.34) == [""] * 4
    assert breaches(Service(bytes_per_s=20), *said[:3], every_s=0.1) == ["", "", "bytes"]


@given(rate=st.integers(1, 1000), late_s=st.lists(st.floats(0, 0.9), min_size=1, max_size=50))
def test_what_is_sent_at_nine_tenths_of_a_rate_may_arrive_late(rate: int, late_s: list[float]) -> None:
    meter, now = Meter(rate), 0.0
    for place in range(200):
        now = max(now, place / (0.9 * rate) + late_s[place % len(late_s)])
        assert not meter.runs_over(min(1.0, rate * 0.1), now)


def test_each_limit_of_a_request_is_held() -> None:
    some = [f"t/{number}" for number in range(6)]
    assert breaches(Service(topics_per_subscribe=5), subscribe(some[:5]), subscribe(some)) == [
        "",
        "topics of one request",
    ]
    held = Service(subscriptions=5)
    assert breaches(held, subscribe(some[:5]), unsubscribe(some[:1]), subscribe(some[5:])) == ["", "", ""]
    assert breaches(held, subscribe(some)) == ["subscriptions"]
    assert breaches(Service(requests_per_s=1), subscribe(some), subscribe(some), every_s=0.5)[1] != ""
    assert breaches(Service(slashes=1), subscribe(["a/b/#"])) == ["slashes"]
    assert breaches(Service(), subscribe(some, qos=2)) == ["QoS 2"]


def test_every_profile_has_a_service_that_holds_it() -> None:
    assert SERVICES.keys() == PROFILES.keys()
