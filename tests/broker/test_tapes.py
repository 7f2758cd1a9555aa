"""Tapes and a real broker: all is recorded, and said again as it was."""

import contextlib
import json
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from iotsplit.cli import main
from iotsplit.packet import Packet
from iotsplit.runtime.address import BrokerAddress
from iotsplit.runtime.link import LinkChange
from iotsplit.runtime.mqtt import MqttLink
from iotsplit.runtime.proxy import TcpProxy
from iotsplit.tape import files
from iotsplit.tape.files import TapeWriter
from iotsplit.tape.format import Header, Record
from iotsplit.tape.recorder import Limits, Recorder
from tests.broker.conftest import StartBroker

pytestmark = [pytest.mark.broker, pytest.mark.slow]

QUIET = Path(__file__).parents[1] / "tapes" / "quiet.tape"
SEEN_S = 30.0


class Client:
    """Listens from its first moment on, and can wait for a topic."""

    def __init__(self, port: int, *filters: str) -> None:
        self._inbox: queue.SimpleQueue[Packet | LinkChange] = queue.SimpleQueue()
        self._retained: list[Packet] = []
        name = f"test-{id(self)}"
        self.link = MqttLink(BrokerAddress.parse(f"mqtt://127.0.0.1:{port}"), name)
        self.link.open(self._inbox.put, last_will=None)
        self.link.subscribe(frozenset({*filters, name}))
        self.link.publish(Packet(topic=name, payload=b"", qos=1))  # comes back once it listens
        *self._retained, _ = self.hear(name)

    def hear(self, last: str) -> list[Packet]:
        """What comes, up to the first message on a topic."""
        found, self._retained = self._retained, []
        while not found or found[-1].topic != last:
            event = self._inbox.get(timeout=SEEN_S)
            if isinstance(event, Packet):
                found.append(event)
        return found


ConnectClient = Callable[..., Client]


@pytest.fixture
def connect() -> Iterator[ConnectClient]:
    """Connects clients; all are closed after the test, since they would look for their broker for ever."""
    clients: list[Client] = []

    def connected(port: int, *filters: str) -> Client:
        clients.append(Client(port, *filters))
        return clients[-1]

    yield connected
    for client in clients:
        client.link.close()


class Recording:
    """A recording in a thread of its own, which has begun to hear."""

    def __init__(self, port: int, tape: Path) -> None:
        self.writer = TapeWriter(tape, Header())
        link = MqttLink(BrokerAddress.parse(f"mqtt://127.0.0.1:{port}"), "record-test")
        self.recorder = Recorder(link, self.writer, observer="record-test", tell=lambda _: None)
        self._thread = threading.Thread(target=self._run)
        self._heard = threading.Event()
        self.done = threading.Event()
        deliver = self.recorder.deliver

        def noting(event: Packet | LinkChange) -> None:
            deliver(event)
            self._heard.set()
            if isinstance(event, Packet) and event.topic == "done":
                self.done.set()

        self.recorder.deliver = noting  # type: ignore[method-assign]  # to know when it listens
        self._thread.start()
        assert self._heard.wait(SEEN_S)

    def _run(self) -> None:
        self.tally = self.recorder.run(frozenset({"#"}), Limits())

    def end(self) -> None:
        self.recorder.stop()
        self._thread.join()
        self.writer.close()


def test_what_is_on_any_topic_is_recorded_without_loss(
    start_mosquitto: StartBroker, connect: ConnectClient, tmp_path: Path
) -> None:
    port = start_mosquitto().settings.port
    client = connect(port, "done")
    client.link.publish(Packet(topic="hall/state", payload=b"on", retain=True))
    recording = Recording(port, tmp_path / "x.tape")
    sent = [Packet(topic=f"hall/{n % 7}", payload=bytes([n % 256]) * n, qos=1) for n in range(300)]
    for packet in sent:
        client.link.publish(packet)
    client.link.publish(Packet(topic="done", payload=b""))
    assert recording.done.wait(SEEN_S)
    recording.end()
    first, *rest = files.records(tmp_path / "x.tape")
    assert (first.topic, first.payload, first.retain) == ("hall/state", b"on", True)
    assert [each.packet for each in rest[: len(sent)]] == sent
    assert recording.tally.lost == 0


def test_a_tape_is_said_again_with_what_is_retained(
    start_mosquitto: StartBroker, connect: ConnectClient, capsys: pytest.CaptureFixture[str]
) -> None:
    port = start_mosquitto().settings.port
    broker = f"--broker=mqtt://127.0.0.1:{port}"
    recorded = list(files.records(QUIET))
    client = connect(port, "iotsplit/bench/#", "done")
    words = ["replay", str(QUIET), broker, "--map-topic=s/memory/bench/"]
    assert main([*words, "--speed=max"]) == 0
    client.link.publish(Packet(topic="done", payload=b""))
    heard = client.hear("done")[:-1]
    for qos in (0, 1):  # MQTT keeps the order within one QoS only
        said = [each.payload for each in recorded if each.qos == qos]
        assert [each.payload for each in heard if each.qos == qos] == said != []
    late = connect(port, "iotsplit/bench/state/+", "done")
    late.link.publish(Packet(topic="done", payload=b""))
    agents = {each.topic for each in late.hear("done") if each.retain}
    assert agents == {f"iotsplit/bench/state/{name}" for name in ("a", "b", "cloud", "edge-1", "edge-2")}
    # Now that fleet is there: another one of its name must not speak into it.
    capsys.readouterr()
    assert main(words) == 4
    assert "agents of fleet bench are there: a, b, cloud, edge-1, edge-2" in capsys.readouterr().err
    assert main([*words, "--force", "--retained-only", "--speed=max", "--topic=iotsplit/memory/state/#"]) == 0
    assert capsys.readouterr().out.startswith("5 messages")


def test_the_command_records_until_its_time_is_over(
    start_mosquitto: StartBroker, connect: ConnectClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = start_mosquitto().settings.port
    client = connect(port)
    client.link.publish(Packet(topic="iotsplit/default/round", payload=b"{}", retain=True))
    client.link.close()
    words = ["record", f"--broker=mqtt://127.0.0.1:{port}", "--duration=1s"]
    assert main([*words, str(tmp_path / "x.tape")]) == 0
    assert "1 messages" in capsys.readouterr().out
    assert files.header(tmp_path / "x.tape").fleet == "default"
    assert main([*words, "--fleet=other", str(tmp_path / "y.tape")]) == 1
    assert "nothing was said on iotsplit/other/#" in capsys.readouterr().err


def test_a_replay_that_loses_its_broker_does_not_say_that_all_is_well(
    start_mosquitto: StartBroker, connect: ConnectClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with TapeWriter(tmp_path / "slow.tape", Header()) as writer:
        for number in range(40):
            writer.add(Record(number * 50_000_000, number, f"count/{number}", b"x", qos=number % 2))
    port = start_mosquitto().settings.port
    client = connect(port, "count/#")
    with contextlib.closing(TcpProxy(port)) as proxy:

        def cut_off() -> None:
            client.hear("count/1")
            proxy.cut()

        cutter = threading.Thread(target=cut_off)
        cutter.start()
        words = ["replay", str(tmp_path / "slow.tape"), f"--broker=mqtt://127.0.0.1:{proxy.port}", "--json"]
        assert main(words) == 1
        cutter.join(SEEN_S)
    out, err = capsys.readouterr()
    played = json.loads(out)
    assert 30 < played["lost"] < played["records"] == 40
    assert f"{played['lost']} messages have not reached" in err
