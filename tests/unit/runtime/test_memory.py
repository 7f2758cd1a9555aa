"""The broker in memory, beyond the contract: stepping, tampering, takeover."""

from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from iotsplit.packet import Packet
from iotsplit.runtime.link import LinkChange
from iotsplit.runtime.memory import MemoryBroker, MemoryLink, matches

levels = st.sampled_from(["", "a", "b", "$x"])
topics = st.lists(levels, min_size=1, max_size=4).map("/".join).filter(bool)
patterns = st.lists(st.sampled_from(["", "a", "b", "+", "$x"]), min_size=1, max_size=4).flatmap(
    lambda parts: st.sampled_from(["/".join(parts), "/".join([*parts, "#"])])
)


@given(patterns.filter(bool), topics)
def test_filters_match_as_pahos_do(pattern: str, topic: str) -> None:
    assert matches(pattern, topic) == topic_matches_sub(pattern, topic)


def joined(broker: MemoryBroker, name: str, *filters: str) -> tuple[MemoryLink, list[Packet | LinkChange]]:
    inbox: list[Packet | LinkChange] = []
    link = MemoryLink(broker, name)
    link.open(inbox.append, last_will=Packet(topic=f"state/{name}", payload=b"offline"))
    link.subscribe(frozenset(filters))
    return link, inbox


def say(link: MemoryLink, payload: bytes) -> None:
    link.publish(Packet(topic="in/x", payload=payload))


def payloads(inbox: list[Packet | LinkChange]) -> list[bytes]:
    return [event.payload for event in inbox if isinstance(event, Packet)]


def test_nothing_arrives_before_it_is_delivered() -> None:
    broker = MemoryBroker()
    link, inbox = joined(broker, "a", "in/#")
    say(link, b"1")
    assert inbox == []
    assert broker.deliver_one()
    assert payloads(inbox) == [b"1"]
    assert not broker.deliver_one()


def test_overlapping_subscriptions_deliver_once() -> None:
    broker = MemoryBroker()
    link, inbox = joined(broker, "a", "in/#", "in/+", "in/x")
    say(link, b"1")
    assert broker.deliver_all() == 1
    assert payloads(inbox) == [b"1"]


def test_a_test_may_lose_repeat_and_hold_back_packets() -> None:
    broker = MemoryBroker()
    link, inbox = joined(broker, "a", "in/#")
    held: list[Packet] = []

    def tamper(client: str, packet: Packet) -> list[Packet]:
        assert client == "a"
        match packet.payload:
            case b"lost":
                return []
            case b"twice":
                return [packet, packet]
            case b"late":
                held.append(packet)
                return []
        return [packet, *held]

    broker.tamper = tamper
    for payload in (b"late", b"lost", b"twice", b"last"):
        say(link, payload)
    broker.deliver_all()
    assert payloads(inbox) == [b"twice", b"twice", b"last", b"late"]


def test_what_is_published_while_delivering_is_delivered_too() -> None:
    broker = MemoryBroker()
    _, inbox = joined(broker, "a", "out/#")
    answering = MemoryLink(broker, "b")
    answering.open(lambda _: answering.publish(Packet(topic="out/b", payload=b"!")), last_will=None)
    answering.subscribe(frozenset({"in/#"}))
    asking, _ = joined(broker, "c")
    say(asking, b"?")
    assert broker.deliver_all() == 2
    assert payloads(inbox) == [b"!"]


def test_what_was_under_way_to_a_lost_client_is_gone() -> None:
    broker = MemoryBroker()
    _, inbox = joined(broker, "a", "in/#")
    sender, _ = joined(broker, "b")
    say(sender, b"1")
    broker.lose("a")
    broker.restore("a")
    broker.deliver_all()
    assert inbox == [LinkChange(up=False, reason="the connection broke"), LinkChange(up=True)]


def test_a_second_client_of_an_id_takes_over() -> None:
    broker = MemoryBroker()
    _, watcher = joined(broker, "w", "state/#")
    _, older = joined(broker, "a", "in/#")
    newer, inbox = joined(broker, "a", "in/#")
    say(newer, b"1")
    broker.deliver_all()
    assert older == [LinkChange(up=False, reason="another client took over the id")]
    assert payloads(inbox) == [b"1"]
    assert payloads(watcher) == [b"offline"]
