"""Adapter versions of a live fleet as a person sees and changes them; the fleet is a memory broker."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from iotsplit.errors import QuorumError, RunFailedError, UsageError
from iotsplit.fleet import adapters, client
from iotsplit.fleet.client import FleetClient
from iotsplit.mailbox import Mailbox
from iotsplit.messages import Message
from iotsplit.packet import Packet
from iotsplit.retained import cut_version
from iotsplit.runtime.link import Deliver, LinkChange
from iotsplit.runtime.memory import MemoryBroker, MemoryLink
from iotsplit.states import AdapterLatest, Command, Reply
from iotsplit.topics import Topics

TOPICS = Topics("default")
TIERS = ("device", "edge", "cloud")
Capture = pytest.CaptureFixture[str]


class Cloud:
    """Retains versions and answers commands as the cloud does."""

    def __init__(self, broker: MemoryBroker, *, mute: bool = False) -> None:
        self.broker = broker
        self.mute = mute
        self.asked: list[Command] = []
        self.mailbox = Mailbox(TOPICS, "cloud")
        self.link = MemoryLink(broker, "cloud")
        self.link.subscribe(frozenset({TOPICS.root + "command"}))
        self.link.open(self.hear, last_will=None)

    def say(self, *messages: Message) -> None:
        for message in messages:
            for packet in self.mailbox.outgoing(message):
                self.link.publish(packet)
        self.broker.deliver_all()

    def publish(self, version: int) -> None:
        rng = np.random.default_rng(version)
        sections = {
            tier: safetensors.numpy.save({f"{tier}.lora": rng.normal(size=(40, 40)).astype(np.float32)})
            for tier in TIERS
        }
        chunks, head = cut_version(
            sections,
            version=version,
            round_=version,
            model="m",
            peft={"r": 8, "target_modules": ["v", "q"]},
            chunk_bytes=100,
        )
        self.say(*chunks, head, AdapterLatest(version=version))

    def hear(self, arrived: Packet | LinkChange) -> None:
        message = self.mailbox.incoming(arrived) if isinstance(arrived, Packet) else None
        if isinstance(message, Command):
            self.asked.append(message)
            if not self.mute:
                ok = message.version != 99
                detail = "version 1 is current" if ok else "there is no version 99"
                for packet in self.mailbox.outgoing(Reply(id=message.id, ok=ok, detail=detail)):
                    self.link.publish(packet)


class Eager(MemoryLink):
    """A client whose broker delivers at once, as a real one does."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker, "client")
        self.broker = broker
        self.widest = 0

    def open(self, deliver: Deliver, *, last_will: Packet | None) -> None:
        super().open(deliver, last_will=last_will)

    def subscribe(self, filters: frozenset[str]) -> None:
        self.widest = max(self.widest, len(filters))
        super().subscribe(filters)
        self.broker.deliver_all()

    def publish(self, packet: Packet) -> None:
        super().publish(packet)
        self.broker.deliver_all()


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def cloud(broker: MemoryBroker) -> Cloud:
    return Cloud(broker)


@pytest.fixture(autouse=True)
def link(broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> Eager:
    link = Eager(broker)
    monkeypatch.setattr(adapters, "connect", lambda _: FleetClient(link, TOPICS, answer_s=0.05))
    monkeypatch.setattr(client, "QUIET_S", 0.02)
    monkeypatch.setattr(client, "FETCH_S", 0.02)
    return link


def test_versions_are_listed_and_the_current_one_is_marked(cloud: Cloud, capsys: Capture) -> None:
    cloud.publish(1)
    cloud.publish(2)
    cloud.say(AdapterLatest(version=1))
    assert adapters.main(["list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["version"], row["current"]) for row in rows] == [(1, True), (2, False)]
    adapters.main(["list"])
    assert "current" in capsys.readouterr().out.splitlines()[1]


def test_a_version_is_shown_with_its_sections(cloud: Cloud, capsys: Capture) -> None:
    cloud.publish(1)
    adapters.main(["show", "1"])
    shown = capsys.readouterr().out
    assert "version 1 (current)" in shown
    assert "modules q, v" in shown
    adapters.main(["show", "1", "--json"])
    assert set(json.loads(capsys.readouterr().out)["sections"]) == set(TIERS)


def test_the_current_version_is_exported_as_a_whole(cloud: Cloud, tmp_path: Path, link: Eager) -> None:
    cloud.publish(1)
    assert adapters.export(["--output", str(tmp_path / "adapter")]) == 0
    weights = safetensors.numpy.load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert set(weights) == {f"{tier}.lora" for tier in TIERS}
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 8
    # Some brokers silently drop retained messages beyond a hundred per subscription.
    assert link.widest <= 32


def test_an_older_version_can_be_exported(cloud: Cloud, tmp_path: Path, capsys: Capture) -> None:
    cloud.publish(1)
    cloud.publish(2)
    adapters.export(["--output", str(tmp_path / "a"), "--version", "1", "--json"])
    assert json.loads(capsys.readouterr().out)["version"] == 1


def test_a_version_with_a_missing_chunk_is_not_exported(
    cloud: Cloud, broker: MemoryBroker, tmp_path: Path
) -> None:
    cloud.publish(1)
    del broker.retained[f"{TOPICS.root}adapter/1/7"]
    with pytest.raises(RunFailedError, match="device of adapter version 1 does not arrive"):
        adapters.export(["--output", str(tmp_path / "a")])
    assert not (tmp_path / "a").exists()


def test_a_version_with_a_wrong_chunk_is_not_exported(
    cloud: Cloud, broker: MemoryBroker, tmp_path: Path
) -> None:
    cloud.publish(1)
    topic = f"{TOPICS.root}adapter/1/7"
    broker.retained[topic] = Packet(topic=topic, payload=b"x" * 100, retain=True)
    with pytest.raises(RunFailedError, match="does not match its digest"):
        adapters.export(["--output", str(tmp_path / "a")])


def test_a_rollback_is_a_command_that_the_cloud_confirms(cloud: Cloud, capsys: Capture) -> None:
    assert adapters.main(["rollback", "1"]) == 0
    assert [(each.verb, each.version) for each in cloud.asked] == [("rollback", 1)]
    assert capsys.readouterr().out == "version 1 is current\n"


@pytest.mark.usefixtures("cloud")
def test_a_rollback_that_the_cloud_refuses_fails_with_its_reason() -> None:
    with pytest.raises(RunFailedError, match="there is no version 99"):
        adapters.main(["rollback", "99"])


def test_a_silent_cloud_is_not_waited_for_forever(broker: MemoryBroker) -> None:
    Cloud(broker, mute=True)
    with pytest.raises(QuorumError, match="no answer to rollback"):
        adapters.main(["rollback", "1"])


def test_a_fleet_without_versions_is_told() -> None:
    with pytest.raises(QuorumError, match="no adapter version in fleet default"):
        adapters.main(["list"])


def test_a_version_that_cannot_be_had_is_told(cloud: Cloud) -> None:
    cloud.publish(1)
    with pytest.raises(UsageError, match="adapter version 5 cannot be had"):
        adapters.main(["show", "5"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["lst"], "did you mean list"),
        (["show"], "needs a version"),
        (["rollback", "--json"], "needs a version"),
    ],
)
def test_a_mistake_is_told(words: list[str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        adapters.main(words)


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_help_shows_the_verbs(words: list[str], capsys: Capture) -> None:
    assert adapters.main(words) == 0
    shown = capsys.readouterr().out
    assert all(f"  {verb} " in shown for verb in adapters.VERBS)
