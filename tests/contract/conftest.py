"""Brokers for the contract: one of each kind for the whole run.

`IOTSPLIT_OTHER_BROKER=1884 pytest tests/contract` runs it against what listens on that port of 127.0.0.1, too.
"""

import importlib.util
import itertools
import os
from collections.abc import Iterator

import pytest

from iotsplit.packet import Packet
from iotsplit_broker.process import Kind, find_mosquitto, start
from iotsplit_broker.settings import BrokerSettings
from tests.contract.buses import Bus, MakePeer, MemoryBus, MqttBus, Peer

_numbers = itertools.count()


@pytest.fixture(scope="session")
def mosquitto_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    if find_mosquitto() is None:
        pytest.skip("Mosquitto is not installed")
    broker = start(BrokerSettings(directory=tmp_path_factory.mktemp("mosquitto")), Kind.MOSQUITTO)
    yield broker.settings.port
    broker.stop()


@pytest.fixture(scope="session")
def embedded_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    if importlib.util.find_spec("iotcore") is None:
        pytest.skip("iotcore is not installed")
    broker = start(BrokerSettings(directory=tmp_path_factory.mktemp("embedded")), Kind.EMBEDDED)
    yield broker.settings.port
    broker.stop()


@pytest.fixture(scope="session")
def other_port() -> int:
    return int(os.environ["IOTSPLIT_OTHER_BROKER"])


@pytest.fixture(
    params=[
        "memory",
        pytest.param("mosquitto", marks=pytest.mark.broker),
        pytest.param("embedded", marks=pytest.mark.broker),
        *(["other"] if os.environ.get("IOTSPLIT_OTHER_BROKER") else []),
    ]
)
def bus(request: pytest.FixtureRequest) -> Iterator[Bus]:
    number = next(_numbers)
    if request.param == "memory":
        made: Bus = MemoryBus()
    else:
        made = MqttBus(request.getfixturevalue(f"{request.param}_port"), f"t{number}")
    yield made
    made.close()


@pytest.fixture
def peer(bus: Bus) -> Iterator[MakePeer]:
    """Makes peers that are closed at the end; each test has topics of its own."""
    root = f"test{next(_numbers)}/"
    peers: list[Peer] = []

    def make(name: str, *filters: str, will: bytes | None = None) -> Peer:
        packet = None if will is None else Packet(topic=f"{root}state/{name}", payload=will, retain=True)
        made = Peer(bus, name, root, packet)
        peers.append(made)
        made.subscribe(*filters)
        return made

    yield make
    for each in peers:
        each.link.close()
