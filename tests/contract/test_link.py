"""What every link keeps to: the same tests in memory, on Mosquitto and on the embedded broker."""

from iotsplit.packet import Packet
from tests.contract.buses import Bus, MakePeer


def payloads(packets: list[Packet]) -> list[bytes]:
    return [packet.payload for packet in packets]


def test_packets_of_a_topic_arrive_in_the_order_of_publishing(peer: MakePeer) -> None:
    receiver, sender = peer("a", "in/#"), peer("b")
    sent = [str(number).encode() for number in range(300)]
    for payload in sent:
        sender.publish("in/b", payload)
    assert payloads(receiver.packets(300)) == sent


def test_a_packet_arrives_as_it_was_sent(peer: MakePeer) -> None:
    receiver, sender = peer("a", "in/#"), peer("b")
    sender.publish("in/b", bytes(range(256)), qos=1)
    assert receiver.packets(1) == [Packet(topic="in/b", payload=bytes(range(256)), qos=1)]


def test_a_packet_of_qos_0_arrives(peer: MakePeer) -> None:
    receiver, sender = peer("a", "in/#"), peer("b")
    sender.publish("in/b", b"x", qos=0)
    assert payloads(receiver.packets(1)) == [b"x"]


def test_a_client_hears_itself(peer: MakePeer) -> None:
    alone = peer("a", "in/#")
    alone.publish("in/a", b"x")
    assert payloads(alone.packets(1)) == [b"x"]


def test_wildcards_match_one_level_or_all_below(peer: MakePeer) -> None:
    one, below, sender = peer("a", "in/+/x"), peer("b", "in/#"), peer("c")
    for topic in ("in", "in/1/x", "in/1/2/x", "in/1/y"):
        sender.publish(topic, b"", qos=1)
    assert sorted(packet.topic for packet in below.packets(4)) == ["in", "in/1/2/x", "in/1/x", "in/1/y"]
    assert [packet.topic for packet in one.packets(1)] == ["in/1/x"]


def test_a_late_subscriber_gets_the_last_retained_packet_marked_so(peer: MakePeer) -> None:
    sender = peer("a")
    sender.publish("state/x", b"1", retain=True)
    sender.publish("state/x", b"2", retain=True)
    sender.sync()
    late = peer("b", "state/+")
    assert late.packets(1) == [Packet(topic="state/x", payload=b"2", retain=True)]


def test_a_subscriber_that_was_there_gets_it_live(peer: MakePeer) -> None:
    receiver, sender = peer("a", "state/+"), peer("b")
    sender.publish("state/x", b"1", retain=True)
    assert [packet.retain for packet in receiver.packets(1)] == [False]


def test_an_empty_retained_packet_clears_the_topic_and_is_told(peer: MakePeer) -> None:
    receiver, sender = peer("a", "state/+"), peer("b")
    sender.publish("state/x", b"1", retain=True)
    sender.publish("state/x", b"", retain=True)
    sender.sync()
    assert payloads(receiver.packets(2)) == [b"1", b""]
    assert peer("c", "state/+").packets(0) == []


def test_a_packet_that_is_not_retained_leaves_the_retained_one(peer: MakePeer) -> None:
    sender = peer("a")
    sender.publish("state/x", b"kept", retain=True)
    sender.publish("state/x", b"event")
    sender.sync()
    assert payloads(peer("b", "state/x").packets(1)) == [b"kept"]


def test_retained_packets_come_only_for_new_filters(peer: MakePeer) -> None:
    sender = peer("a")
    sender.publish("state/x", b"x", retain=True)
    sender.publish("other/y", b"y", retain=True)
    sender.sync()
    receiver = peer("b", "state/+")
    receiver.packets(1)
    receiver.subscribe("state/+", "other/+")
    assert payloads(receiver.packets(1)) == [b"y"]


def test_nothing_comes_after_unsubscribing(peer: MakePeer) -> None:
    receiver, sender = peer("a", "in/1", "in/2"), peer("b")
    receiver.subscribe("in/2")
    sender.publish("in/1", b"gone")
    sender.publish("in/2", b"stays")
    sender.sync()
    assert payloads(receiver.packets(1)) == [b"stays"]


def test_more_filters_than_fit_into_one_request_all_work(peer: MakePeer) -> None:
    names = [f"in/{number}" for number in range(20)]
    receiver, sender = peer("a", *names), peer("b")
    for name in names:
        sender.publish(name, b"")
    assert sorted(packet.topic for packet in receiver.packets(20)) == sorted(names)


def test_the_last_will_is_said_when_the_connection_is_lost(bus: Bus, peer: MakePeer) -> None:
    watcher = peer("a", "state/+")
    peer("b", will=b"offline")
    bus.lose("b")
    assert watcher.packets(1) == [Packet(topic="state/b", payload=b"offline")]
    assert payloads(peer("c", "state/+").packets(1)) == [b"offline"]


def test_no_last_will_is_said_at_a_goodbye(peer: MakePeer) -> None:
    watcher = peer("a", "state/+")
    leaver = peer("b", will=b"offline")
    leaver.publish("state/b", b"bye", retain=True)
    leaver.link.close()
    assert payloads(watcher.packets(1)) == [b"bye"]


def test_closing_waits_for_what_was_published(peer: MakePeer) -> None:
    receiver, sender = peer("a", "in/#"), peer("b")
    for _ in range(50):
        sender.publish("in/b", bytes(60 * 1024))
    sender.link.close()
    assert len(receiver.packets(50)) == 50


def test_closing_twice_is_harmless(peer: MakePeer) -> None:
    alone = peer("a")
    alone.link.close()
    alone.link.close()


def test_a_link_that_was_lost_says_so_and_comes_back_with_its_subscriptions(bus: Bus, peer: MakePeer) -> None:
    receiver, sender = peer("a", "in/#"), peer("b")
    bus.lose("a")
    down = receiver.change()
    assert not down.up
    assert down.reason
    bus.restore("a")
    assert receiver.change().up
    receiver.sync()
    sender.publish("in/b", b"again")
    assert payloads(receiver.packets(1)) == [b"again"]


def test_a_link_that_came_back_hears_retained_packets_again(bus: Bus, peer: MakePeer) -> None:
    receiver, sender = peer("a", "state/+"), peer("b")
    sender.publish("state/x", b"1", retain=True)
    receiver.packets(1)
    bus.lose("a")
    receiver.change()
    bus.restore("a")
    receiver.change()
    assert receiver.packets(1) == [Packet(topic="state/x", payload=b"1", retain=True)]


def test_subscriptions_changed_while_away_hold_afterwards(bus: Bus, peer: MakePeer) -> None:
    receiver, sender = peer("a", "in/1"), peer("b")
    bus.lose("a")
    receiver.change()
    receiver.link.subscribe(frozenset())
    bus.restore("a")
    receiver.change()
    receiver.subscribe("in/2")
    sender.publish("in/1", b"gone")
    sender.publish("in/2", b"new")
    sender.sync()
    assert payloads(receiver.packets(1)) == [b"new"]


def test_what_is_published_while_away_arrives_in_order_afterwards(bus: Bus, peer: MakePeer) -> None:
    receiver, sender = peer("a", "in/#"), peer("b")
    bus.lose("b")
    sender.change()
    sent = [str(number).encode() for number in range(150)]
    for payload in sent:
        sender.publish("in/b", payload)
    bus.restore("b")
    assert sender.change().up
    assert payloads(receiver.packets(150)) == sent


def test_qos_0_published_while_away_is_dropped(bus: Bus, peer: MakePeer) -> None:
    receiver, sender = peer("a", "in/#"), peer("b")
    bus.lose("b")
    sender.change()
    sender.publish("in/b", b"late", qos=0)
    sender.publish("in/b", b"kept", qos=1)
    bus.restore("b")
    sender.change()
    sender.sync()
    assert payloads(receiver.packets(1)) == [b"kept"]


def test_a_will_is_said_at_every_loss(bus: Bus, peer: MakePeer) -> None:
    watcher, victim = peer("a", "state/+"), peer("b", will=b"offline")
    for _ in range(2):
        bus.lose("b")
        assert payloads(watcher.packets(1)) == [b"offline"]
        assert not victim.change().up
        bus.restore("b")
        assert victim.change().up


def test_bursts_of_large_packets_pass_both_ways_at_once(peer: MakePeer) -> None:
    one, other = peer("a", "to/a"), peer("b", "to/b")
    sent = [bytes([number]) * (60 * 1024) for number in range(18)]
    for payload in sent:
        one.publish("to/b", payload)
        other.publish("to/a", payload)
    assert payloads(one.packets(18)) == sent
    assert payloads(other.packets(18)) == sent


def test_overlapping_subscriptions_deliver_at_least_once(peer: MakePeer) -> None:
    receiver, sender = peer("a", "in/#", "in/+", "in/b"), peer("b")
    sender.publish("in/b", b"x")
    assert set(payloads(receiver.packets(1))) == {b"x"}
