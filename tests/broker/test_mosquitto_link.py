"""The MQTT link where a real broker misbehaves: killed, replaced, silent, taken over."""

import queue
import threading

import pytest

from iotsplit.packet import Packet
from iotsplit.runtime import connection, mqtt
from iotsplit.runtime.address import BrokerAddress
from iotsplit.runtime.link import LinkChange
from iotsplit.runtime.mqtt import MqttLink
from iotsplit.runtime.proxy import TcpProxy
from iotsplit_broker.process import Broker, Kind, start
from tests.broker.conftest import StartBroker
from tests.waiting import comes_true

pytestmark = pytest.mark.broker

Inbox = queue.SimpleQueue[Packet | LinkChange]


def connect(
    port: int, name: str = "test", *, last_will: Packet | None = None, **options: float
) -> tuple[MqttLink, Inbox]:
    address = BrokerAddress.parse(f"mqtt://127.0.0.1:{port}")
    link = MqttLink(address, name, first_retry_s=0.01, **options)  # type: ignore[arg-type]  # tests only
    inbox: Inbox = queue.SimpleQueue()
    link.open(inbox.put, last_will=last_will)
    return link, inbox


def payload(event: Packet | LinkChange) -> bytes:
    assert isinstance(event, Packet)
    return event.payload


def change(event: Packet | LinkChange) -> bool:
    assert isinstance(event, LinkChange)
    return event.up


def say(link: MqttLink, text: bytes, *, topic: str = "in", retain: bool = False) -> None:
    link.publish(Packet(topic=topic, payload=text, retain=retain))


def test_links_come_back_to_a_broker_that_was_killed_and_started_again(start_mosquitto: StartBroker) -> None:
    broker = start_mosquitto()
    link, inbox = connect(broker.settings.port)
    link.subscribe(frozenset({"in"}))
    broker.process.kill()
    assert not change(inbox.get(timeout=20))
    broker.process.wait()
    say(link, b"written while nobody was there")
    again = start(broker.settings, Kind.MOSQUITTO)
    back, heard = sorted([inbox.get(timeout=20) for _ in range(2)], key=lambda each: isinstance(each, Packet))
    assert change(back)  # what was said may be back before the link says that it is
    assert payload(heard) == b"written while nobody was there"
    link.close()
    again.stop()


def keep_something(broker: Broker) -> None:
    link, inbox = connect(broker.settings.port)
    link.subscribe(frozenset({"probe"}))
    say(link, b"kept", topic="state", retain=True)
    say(link, b"", topic="probe")
    inbox.get(timeout=20)
    link.close()


def kept_after_restart(broker: Broker) -> list[bytes]:
    """What a late subscriber is given once the broker is started again."""
    broker.process.wait()
    again = start(broker.settings, Kind.MOSQUITTO)
    late, inbox = connect(again.settings.port, "late")
    late.subscribe(frozenset({"state", "probe"}))
    say(late, b"", topic="probe")
    found = []
    while text := payload(inbox.get(timeout=20)):
        found.append(text)
    late.close()
    again.stop()
    return found


def test_retained_packets_survive_a_restart(start_mosquitto: StartBroker) -> None:
    broker = start_mosquitto()
    keep_something(broker)
    broker.process.terminate()
    assert kept_after_restart(broker) == [b"kept"]


@pytest.mark.slow
def test_retained_packets_survive_a_kill_once_they_are_saved(start_mosquitto: StartBroker) -> None:
    broker = start_mosquitto(autosave_s=1)
    keep_something(broker)
    saved = broker.settings.directory / "mosquitto.db"
    assert comes_true(lambda: saved.exists() and b"kept" in saved.read_bytes())
    broker.process.kill()
    assert kept_after_restart(broker) == [b"kept"]


def test_unacknowledged_packets_go_out_again_before_newer_ones(start_mosquitto: StartBroker) -> None:
    broker = start_mosquitto()
    proxy = TcpProxy(broker.settings.port)
    receiver, inbox = connect(broker.settings.port, "receiver")
    receiver.subscribe(frozenset({"in"}))
    sender, changes = connect(proxy.port, "sender")
    for round_ in range(5):
        for number in range(100):
            if number == 50:
                proxy.cut()
            say(sender, f"{round_} {number}".encode())
        proxy.mend()
        while not change(changes.get(timeout=20)):
            pass
    say(sender, b"end")
    seen: list[bytes] = []
    while (text := payload(inbox.get(timeout=20))) != b"end":
        seen.append(text)
    # At least once, and the last copy of each in the order of publishing.
    last = sorted(set(seen), key=lambda text: len(seen) - seen[::-1].index(text))
    assert last == [f"{round_} {number}".encode() for round_ in range(5) for number in range(100)]
    sender.close()
    receiver.close()
    proxy.close()


def test_a_half_open_connection_is_noticed_at_both_ends_by_keepalive(
    start_mosquitto: StartBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = start_mosquitto()
    other, heard = connect(broker.settings.port, "other")
    other.subscribe(frozenset({"state"}))
    monkeypatch.setattr(connection, "KEEPALIVE_S", 1)
    monkeypatch.setattr(connection, "ANSWER_TIMEOUT_S", 1.0)
    proxy = TcpProxy(broker.settings.port)
    will = Packet(topic="state", payload=b"gone", retain=True)
    link, inbox = connect(proxy.port, last_will=will)
    proxy.stall()
    say(link, b"said to nobody", topic="state")
    ended = inbox.get(timeout=20)
    assert isinstance(ended, LinkChange)
    assert ended.reason == "no answer within 1 s"
    assert payload(heard.get(timeout=20)) == b"gone"
    proxy.mend()
    assert change(inbox.get(timeout=20))
    assert payload(heard.get(timeout=20)) == b"said to nobody"
    for each in (link, other, proxy):
        each.close()


def test_two_clients_of_one_id_are_told_and_the_later_one_stays_for_a_while(
    start_mosquitto: StartBroker,
) -> None:
    broker = start_mosquitto()
    older, inbox = connect(broker.settings.port, "same")
    older.close()
    older, inbox = connect(broker.settings.port, "same")
    newer, _ = connect(broker.settings.port, "same")
    assert not change(inbox.get(timeout=20))
    older.close()
    newer.close()


def test_publishing_waits_for_room_and_goes_on_with_acknowledgements(start_mosquitto: StartBroker) -> None:
    broker = start_mosquitto()
    link, inbox = connect(broker.settings.port, limit_bytes=100_000)
    link.subscribe(frozenset({"in"}))
    for number in range(100):
        say(link, bytes([number]) * 60_000)
        assert link._outbox.size_bytes <= 100_000
    assert [payload(inbox.get(timeout=20))[0] for _ in range(100)] == list(range(100))
    link.close()


def test_publishing_to_a_silent_broker_goes_on_after_its_patience(
    start_mosquitto: StartBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "PATIENCE_S", 0.01)
    monkeypatch.setattr(mqtt, "FLUSH_S", 0.01)
    broker = start_mosquitto()
    link, _ = connect(broker.settings.port, limit_bytes=10)
    broker.process.send_signal(19)  # SIGSTOP: it acknowledges nothing, and the connection stays
    for _ in range(3):
        say(link, b"0123456789")
    assert len(link._outbox) == 3
    broker.process.send_signal(18)  # SIGCONT
    link.close()


def test_closing_frees_who_waits_for_room(
    start_mosquitto: StartBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "FLUSH_S", 0.01)
    broker = start_mosquitto()
    link, _ = connect(broker.settings.port, limit_bytes=10)
    broker.process.send_signal(19)
    say(link, b"0123456789")
    waiting = threading.Thread(target=say, args=(link, b"0123456789"))
    waiting.start()
    link.close()
    waiting.join(mqtt.PATIENCE_S / 2)
    assert not waiting.is_alive()
    broker.process.send_signal(18)


def test_a_lost_connection_frees_who_waits_for_room(start_mosquitto: StartBroker) -> None:
    broker = start_mosquitto()
    link, inbox = connect(broker.settings.port, limit_bytes=10)
    broker.process.send_signal(19)
    say(link, b"0123456789")
    waiting = threading.Thread(target=say, args=(link, b"0123456789"))
    waiting.start()
    broker.process.kill()
    assert not change(inbox.get(timeout=20))
    waiting.join(mqtt.PATIENCE_S / 2)
    assert not waiting.is_alive()
    link.close()


def test_publishing_from_the_network_thread_never_waits_for_room(start_mosquitto: StartBroker) -> None:
    broker = start_mosquitto()
    address = BrokerAddress.parse(f"mqtt://127.0.0.1:{broker.settings.port}")
    link = MqttLink(address, "test", limit_bytes=1)
    inbox: Inbox = queue.SimpleQueue()

    def deliver(event: Packet | LinkChange) -> None:
        inbox.put(event)
        if payload(event) == b"in":
            for _ in range(5):
                say(link, b"out")

    link.open(deliver, last_will=None)
    link.subscribe(frozenset({"in"}))
    say(link, b"in")
    assert [payload(inbox.get(timeout=mqtt.PATIENCE_S / 2)) for _ in range(6)] == [b"in"] + [b"out"] * 5
    link.close()


def test_an_error_in_deliver_does_not_stop_later_packets(start_mosquitto: StartBroker) -> None:
    broker = start_mosquitto()
    address = BrokerAddress.parse(f"mqtt://127.0.0.1:{broker.settings.port}")
    link = MqttLink(address, "test")
    inbox: Inbox = queue.SimpleQueue()

    def deliver(event: Packet | LinkChange) -> None:
        if payload(event) == b"bad":
            raise RuntimeError("bad")
        inbox.put(event)

    link.open(deliver, last_will=None)
    link.subscribe(frozenset({"in"}))
    say(link, b"bad")
    say(link, b"good")
    assert payload(inbox.get(timeout=20)) == b"good"
    link.close()
