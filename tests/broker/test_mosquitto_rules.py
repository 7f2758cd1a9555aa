"""The access list that we write, on a real Mosquitto: what each credential can do, and nothing else."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from iotsplit.packet import Packet
from iotsplit.runtime.address import BrokerAddress
from iotsplit.runtime.mqtt import MqttLink
from iotsplit_broker.configuration.config import main
from iotsplit_broker.process import Broker
from tests.broker.conftest import StartBroker
from tests.broker.sites import SECRET, Listener, users_file
from tests.waiting import comes_true

pytestmark = [pytest.mark.slow, pytest.mark.broker]

ROOT = "plant7/iotsplit/f/"
FOREIGN = ("iotsplit/f/state/press", "plant7/iotsplit/other/state/press", "factory/press/log")
AGENTS = ("press", "pump", "edge-1", "edge-2", "cloud")
BELOW = [
    *(f"{word}/{agent}" for word in ("state", "probe", "metrics", "assign") for agent in AGENTS),
    *(f"lan/{to}/{sender}/s" for to, sender in (("edge-1", "press"), ("edge-1", "pump"), ("edge-2", "press"))),
    *(f"lan/{to}/{sender}/s" for to, sender in (("press", "edge-1"), ("pump", "edge-1"), ("pump", "edge-2"))),
    *(f"wan/{to}/{sender}/s" for to, sender in (("cloud", "edge-1"), ("cloud", "edge-2"), ("cloud", "press"))),
    *(f"wan/{to}/{sender}/s" for to, sender in (("edge-1", "cloud"), ("edge-2", "cloud"), ("press", "cloud"))),
    *(f"update/{device}/s/{tier}" for device in ("press", "pump") for tier in ("device", "edge")),
    *(f"probe/{agent}/many/0" for agent in AGENTS),
    *("adapter/latest", "adapter/3/head", "adapter/3/0", "checkpoint/press/1.0/head", "checkpoint/pump/1.0/0"),
    *("round", "events", "command", "command/1"),
]
TOPICS = [*(ROOT + topic for topic in BELOW), *FOREIGN]
EVERYWHERE = frozenset({"#"})

WRITES = {
    "press": {
        *("state/press", "probe/press", "probe/press/many/0", "metrics/press"),
        *("lan/edge-1/press/s", "lan/edge-2/press/s", "update/press/s/device"),
    },
    "edge-1": {
        *("state/edge-1", "probe/edge-1", "probe/edge-1/many/0", "metrics/edge-1"),
        *("lan/press/edge-1/s", "lan/pump/edge-1/s"),
        *("wan/cloud/edge-1/s", "update/press/s/edge", "update/pump/s/edge"),
        *("checkpoint/press/1.0/head", "checkpoint/pump/1.0/0"),
    },
    "cloud": {
        *("state/cloud", "probe/cloud", "probe/cloud/many/0", "metrics/cloud"),
        *(
            "assign/press",
            "assign/pump",
            "assign/edge-1",
            "assign/edge-2",
            "assign/cloud",
            "wan/edge-1/cloud/s",
            "wan/edge-2/cloud/s",
            "wan/press/cloud/s",
        ),
        *("adapter/latest", "adapter/3/head", "adapter/3/0", "round", "events", "command/1"),
    },
    "anna": {"command"},
    "ear": set(),
    "plant8": {
        *(f"{word}/{agent}" for word in ("state", "metrics") for agent in AGENTS),
        *("wan/cloud/edge-1/s", "wan/cloud/edge-2/s", "wan/cloud/press/s", "command"),
        *(topic for topic in BELOW if topic.startswith("update/")),
    },
}
ADAPTER = {"adapter/latest", "adapter/3/head", "adapter/3/0"}
READS = {
    "press": {
        *("state/press", "probe/press", "probe/press/many/0", "assign/press", "lan/press/edge-1/s", *ADAPTER),
    },
    "edge-1": {
        *(
            "state/edge-1",
            "probe/edge-1",
            "probe/edge-1/many/0",
            *(f"assign/{agent}" for agent in AGENTS),
            *ADAPTER,
        ),
        *("lan/edge-1/press/s", "lan/edge-1/pump/s", "wan/edge-1/cloud/s"),
        *("checkpoint/press/1.0/head", "checkpoint/pump/1.0/0"),
    },
    "ear": set(BELOW),
}


@pytest.fixture
def broker(tmp_path: Path, start_mosquitto: StartBroker, capsys: pytest.CaptureFixture[str]) -> Broker:
    """With our access list, and one user beside it who may do everything."""
    words = ["--for=mosquitto", "--fleet=f", "--topic-prefix=plant7/", f"--output={tmp_path / 'etc'}"]
    main([*words, "--edges=edge-1,edge-2", "--operators=anna", "--recorders=ear", "--bridges=plant8"])
    acl = tmp_path / "etc" / "iotsplit.acl"
    with acl.open("a") as out:
        out.write("user all\ntopic readwrite #\n")
    users = users_file(tmp_path / "users", [*AGENTS, "anna", "ear", "plant8", "all"])
    return start_mosquitto(users_file=users, acl_file=acl)


Connect = Callable[..., MqttLink]


@pytest.fixture
def connect(broker: Broker) -> Iterator[Connect]:
    with contextlib.ExitStack() as stack:

        def begin(user: str, *, client: str = "x", last_will: Packet | None = None) -> MqttLink:
            url = f"mqtt://127.0.0.1:{broker.settings.port}"
            link = MqttLink(BrokerAddress.parse(url, user=user, password=SECRET), client)
            link.open(lambda _: None, last_will=last_will)
            stack.callback(link.close)
            return link

        yield begin


def heard(listener: Listener, last: str) -> set[str]:
    """What a listener has heard when the last thing has come."""
    try:
        assert comes_true(lambda: last in {packet.topic for packet in listener.packets})
    finally:
        listener.close()
    return {packet.topic for packet in listener.packets} - {last}


@pytest.mark.parametrize("user", WRITES)
def test_a_user_writes_what_it_needs_and_nothing_else(broker: Broker, connect: Connect, user: str) -> None:
    listener = Listener(broker.settings.port, user="all")
    link = connect(user)
    for topic in TOPICS:
        link.publish(Packet(topic=topic, payload=b"1", retain=True))
    own = f"{ROOT}lan/nobody/{user}/last"  # every user may write its device's topics
    link.publish(Packet(topic=own, payload=b"1"))
    mine = {f"state/{user}", f"probe/{user}", f"probe/{user}/many/0", f"metrics/{user}"} & set(BELOW)
    assert heard(listener, own) == {ROOT + topic for topic in WRITES[user] | mine}


@pytest.mark.parametrize("user", READS)
def test_a_user_hears_what_it_needs_and_nothing_else(broker: Broker, connect: Connect, user: str) -> None:
    listener = Listener(broker.settings.port, user=user, filters=EVERYWHERE | set(TOPICS))
    link = connect("all")
    for topic in TOPICS:
        link.publish(Packet(topic=topic, payload=b"1", retain=True))
    last = f"{ROOT}lan/{user}/nobody/last"
    assert comes_true(lambda: _said(link, listener, last))
    assert heard(listener, last) == {ROOT + topic for topic in READS[user]}


def _said(link: MqttLink, listener: Listener, last: str) -> bool:
    """Say the last thing until it is heard: a subscription may come after what was said."""
    link.publish(Packet(topic=last, payload=b"1"))
    return last in {packet.topic for packet in listener.packets}


def test_a_stolen_credential_cannot_declare_another_agent_dead(broker: Broker, connect: Connect) -> None:
    listener = Listener(broker.settings.port, user="all")
    forged = Packet(topic=f"{ROOT}state/pump", payload=b"{}", retain=True)
    thief = connect("press", last_will=forged)
    connection = thief._connection
    assert connection is not None
    connection._tear()  # without a goodbye
    connect("pump").publish(Packet(topic=f"{ROOT}metrics/pump", payload=b"1"))
    assert heard(listener, f"{ROOT}metrics/pump") == set()


def test_a_stolen_credential_cannot_throw_out_another_agent(broker: Broker, connect: Connect) -> None:
    listener = Listener(broker.settings.port, user="pump", filters=frozenset({f"{ROOT}assign/pump"}))
    connect("press", client="listener-pump")
    connect("press", client="pump")
    assert comes_true(lambda: _said(connect("cloud"), listener, f"{ROOT}assign/pump"))
    assert not listener.breaks
    listener.close()
