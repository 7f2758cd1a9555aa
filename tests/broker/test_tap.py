"""A device process that learns from topics of others on a real broker, and is seen by Home Assistant."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from iotsplit.packet import Packet
from iotsplit.runtime.address import BrokerAddress
from iotsplit.runtime.link import LinkChange
from iotsplit.runtime.mqtt import MqttLink
from tests.broker.conftest import StartBroker
from tests.support import letters_model
from tests.waiting import comes_true

pytestmark = [pytest.mark.slow, pytest.mark.broker, pytest.mark.timeout(900)]

ROOT = "iotsplit/default"
STEPS = ("--cut=1,3", "--batch-size=3", "--micro-batches=1", "--sequence-length=16", "--codec-check=0")
RUN = ("--rounds=1", "--local-steps=2", "--devices=1", "--edges=1", "--once")
CONFIG = "homeassistant/device/iotsplit_default_{}/config"
PATIENCE_S = 200.0


class Factory:
    """Speaks on its own topics, and sees all that is on the broker."""

    def __init__(self, port: int) -> None:
        self.retained: dict[str, bytes] = {}
        self.foreign: list[str] = []
        self.link = MqttLink(BrokerAddress.parse(f"mqtt://127.0.0.1:{port}"), "factory")
        self.link.open(self._deliver, last_will=None)
        self.link.subscribe(frozenset({"#"}))

    def _deliver(self, event: Packet | LinkChange) -> None:
        if isinstance(event, Packet):
            self.retained[event.topic] = event.payload
            if not event.topic.startswith((f"{ROOT}/", "homeassistant/")):
                self.foreign.append(event.topic)

    def say(self, number: int, *, retain: bool = False) -> None:
        text = f"press {'abcdefghijklmnopqrstuvwxyz'[number]} was oiled and runs dry again"
        payload = json.dumps({"machine": {"text": text}, "at": number}).encode()
        self.link.publish(Packet(topic=f"factory/{number % 3}/log", payload=payload, retain=retain))

    def state(self, agent: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.retained.get(f"{ROOT}/state/{agent}", b"{}"))
        return found


@pytest.fixture
def processes() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    started: list[subprocess.Popen[str]] = []

    def start(*words: str) -> "subprocess.Popen[str]":
        line = [sys.executable, "-m", "iotsplit", *words]
        started.append(subprocess.Popen(line, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.terminate()
        process.communicate()


def check_what_was_learnt(snapshot: Path) -> None:
    texts = [json.loads(line)["text"] for line in snapshot.read_text().splitlines()]
    assert len(texts) >= 8
    assert all(text.startswith("press ") for text in texts)


def check_discovery(factory: Factory) -> None:
    """The cloud has finished for good and is gone; the others are there, with topics that exist."""
    assert comes_true(lambda: factory.retained.get(CONFIG.format("cloud")) == b"")
    for agent in ("press", "edge"):
        found = json.loads(factory.retained[CONFIG.format(agent)])
        for sensor in found["components"].values():
            assert sensor["state_topic"].replace("metrics/+", "metrics/cloud") in factory.retained


def test_a_device_without_files_learns_from_the_bus_and_is_seen_in_home_assistant(
    start_mosquitto: StartBroker, processes: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    port = start_mosquitto().settings.port
    factory = Factory(port)
    model = letters_model(tmp_path / "tiny")
    all_agents = (
        f"--broker=mqtt://127.0.0.1:{port}",
        f"--model={model}",
        "--home-assistant",
        "--log-level=warning",
    )
    cloud = processes("cloud", *all_agents, f"--output={tmp_path / 'out'}", *STEPS, *RUN)
    processes("edge", *all_agents)
    tap = ("--tap=factory/+/log", "--tap-field=machine.text", "--tap-min=8")
    device = processes("device", *all_agents, *tap, "--id=press", f"--state-dir={tmp_path / 'state'}")

    factory.link.publish(Packet(topic="factory/0/log", payload=b"no json"))
    for number in range(5):
        factory.say(number, retain=number < 3)  # those of before it listens are heard if they are retained
        factory.say(number)
    assert comes_true(lambda: "waits for texts: " in factory.state("press").get("problem", ""), PATIENCE_S)
    assert factory.state("press")["online"] is False
    for number in range(20):
        factory.say(number)
    assert cloud.wait(timeout=PATIENCE_S) == 0

    report = json.loads((tmp_path / "out" / "report.json").read_bytes())
    assert report["ledger"] == {"expected": 2, "applied": 2, "lost": 0, "duplicated": 0}
    assert factory.state("press")["online"] is True
    check_what_was_learnt(tmp_path / "state" / "tap" / "snapshot.jsonl")
    assert len(factory.foreign) == 1 + 10 + 20  # nobody but the factory speaks where the factory speaks
    check_discovery(factory)
    device.terminate()
    assert device.wait(timeout=PATIENCE_S) == 130
    assert comes_true(lambda: not factory.state("press")["online"])
    assert factory.retained[CONFIG.format("press")]
    factory.link.close()
