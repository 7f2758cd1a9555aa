"""``iotsplit broker check --remote``: what a bridge between two real Mosquittos makes of messages."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from iotsplit.runtime.address import BrokerAddress
from iotsplit.topics import Topics
from iotsplit_broker import process
from iotsplit_broker.checking import check, examination
from iotsplit_broker.checking.bench import Bench
from iotsplit_broker.checking.bridges import crossing
from iotsplit_broker.checking.client import BareClient
from iotsplit_broker.checking.crossing import judge_crossing
from iotsplit_broker.checking.findings import Finding, Verdict
from iotsplit_broker.process import Broker
from iotsplit_broker.settings import BrokerSettings, mosquitto_conf
from tests.broker.conftest import StartBroker

pytestmark = [pytest.mark.broker, pytest.mark.slow]

LOCAL, REMOTE = "plant7/", "site/"
CARRIED = ("wan/#", "update/#", "state/#", "assign/#", "adapter/#", "round")
StartBridge = Callable[..., tuple[Broker, Broker]]


@pytest.fixture(autouse=True)
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take as long as it likes."""
    monkeypatch.setattr(examination, "QUICK", replace(examination.QUICK, limit_s=600.0))


@pytest.fixture
def start_bridge(start_mosquitto: StartBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StartBridge:
    """Starts a shop floor's broker with a bridge to another, and waits until the bridge is up."""

    def begin(*lines: str, paths: tuple[str, ...] = CARRIED, qos: str = "1") -> tuple[Broker, Broker]:
        far = start_mosquitto(directory=tmp_path / "far")
        bridge = [
            "connection up",
            f"address 127.0.0.1:{far.settings.port}",
            *(f"topic {path} both {qos} {LOCAL}iotsplit/default/ {REMOTE}iotsplit/default/" for path in paths),
            *lines,
        ]

        def conf(settings: BrokerSettings, *, user: str | None = None) -> str:
            return mosquitto_conf(settings, user=user) + "\n".join(bridge) + "\n"

        with monkeypatch.context() as patch:
            patch.setattr(process, "mosquitto_conf", conf)
            floor = start_mosquitto(directory=tmp_path / "floor")
        with BareClient(address_of(floor), "looks") as client:
            client.subscribe(["$SYS/broker/connection/+/state"])
            while client.hear(timeout_s=20.0, quiet_s=20.0)[0].payload != b"1":
                pass
        return floor, far

    return begin


def address_of(broker: Broker) -> BrokerAddress:
    return BrokerAddress.parse(f"mqtt://127.0.0.1:{broker.settings.port}")


def findings_of(brokers: tuple[Broker, Broker]) -> list[Finding]:
    floor, far = (
        Bench(address_of(broker), Topics("default", prefix), "check-1", chunk_bytes=61440)
        for broker, prefix in zip(brokers, (LOCAL, REMOTE), strict=True)
    )
    found = judge_crossing(crossing(floor, far, 61440))
    assert floor.clean() == far.clean() == []
    return found


def test_a_bridge_of_version_5_carries_all_and_keeps_lan_at_home(start_bridge: StartBridge) -> None:
    bridge, privacy = findings_of(start_bridge("bridge_protocol_version mqttv50"))
    assert (bridge.verdict, privacy.verdict) == (Verdict.OK, Verdict.OK), (bridge, privacy)


def test_a_bridge_that_flattens_qos_is_named(start_bridge: StartBridge) -> None:
    bridge, _ = findings_of(start_bridge("bridge_protocol_version mqttv50", qos="0"))
    assert (bridge.verdict, bridge.fails) == (Verdict.FLATTENED, True)
    assert "QoS 1 becomes 0: wan up, update up, state up, wan down" in bridge.said


def test_a_bridge_that_drops_retain_flags_is_named(start_bridge: StartBridge) -> None:
    bridge, _ = findings_of(
        start_bridge("bridge_protocol_version mqttv311", "try_private false", "bridge_outgoing_retain false")
    )
    assert (bridge.verdict, bridge.fails) == (Verdict.FLATTENED, True)
    assert "not retained there: state up, assign down, adapter down" in bridge.said


def test_a_kind_that_the_bridge_does_not_carry_is_named(start_bridge: StartBridge) -> None:
    bridge, _ = findings_of(start_bridge(paths=("wan/#", "update/#", "state/#", "assign/#")))
    assert (bridge.verdict, bridge.said) == (Verdict.ABSENT, "not across: adapter down")


def test_a_bridge_that_carries_everything_is_pointed_out(start_bridge: StartBridge) -> None:
    bridge, privacy = findings_of(start_bridge("bridge_protocol_version mqttv50", paths=("#",)))
    assert bridge.verdict is Verdict.OK
    assert privacy.said == "crosses and need not: lan up, checkpoint up"


def test_the_command_looks_at_both_ends(start_bridge: StartBridge, capsys: pytest.CaptureFixture[str]) -> None:
    floor, far = start_bridge("bridge_protocol_version mqttv50")
    code = check.main(
        [
            str(address_of(floor)),
            *("--quick", "--json", f"--topic-prefix={LOCAL}"),
            *(f"--remote={address_of(far)}", f"--remote-topic-prefix={REMOTE}"),
        ]
    )
    told = json.loads(capsys.readouterr().out)
    assert (code, told["fit"], told["left"]) == (0, True, [])
    assert [each["point"] for each in told["points"]][-2:] == ["bridge", "bridge privacy"]
