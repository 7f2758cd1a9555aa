"""``iotsplit broker check`` at real brokers with bad settings: each is named, nothing is left behind."""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from iotsplit.errors import BrokerUnreachableError, RefusedError
from iotsplit.packet import Packet
from iotsplit.runtime.address import BrokerAddress
from iotsplit.runtime.proxy import UP, TcpProxy
from iotsplit.topics import Topics
from iotsplit_broker import process
from iotsplit_broker.checking import check, examination, loads, points, probes
from iotsplit_broker.checking.bench import Bench
from iotsplit_broker.checking.client import BareClient, Manners
from iotsplit_broker.checking.examination import QUICK, reach
from iotsplit_broker.checking.findings import Verdict
from iotsplit_broker.checking.rights import Role, judge_rights
from iotsplit_broker.configuration.access import DEVICE
from iotsplit_broker.configuration.mosquitto_acl import acl_lines
from iotsplit_broker.process import Broker, Kind, start
from iotsplit_broker.settings import BrokerSettings
from tests.broker.conftest import StartBroker
from tests.mqtt_packets import PUBLISH, Stream
from tests.quotas import Meter

pytestmark = [pytest.mark.broker, pytest.mark.slow]

StartConfigured = Callable[..., Broker]
TOPICS = Topics("default", "plant7/")
ROOT = TOPICS.root
TIMED = {"round trip", "speed"}  # what a busy machine makes slow


@pytest.fixture(autouse=True)
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take as long as it likes."""
    monkeypatch.setattr(examination, "QUICK", replace(examination.QUICK, limit_s=600.0))


@pytest.fixture
def start_configured(start_mosquitto: StartBroker, monkeypatch: pytest.MonkeyPatch) -> StartConfigured:
    """Starts Mosquitto as shipped, with some lines of configuration."""

    def begin(*lines: str) -> Broker:
        def conf(settings: BrokerSettings, *, user: str | None = None) -> str:
            del user
            first = [f"listener {settings.port} {settings.host}", "user root", "log_dest stderr"]
            anonymous = [] if any("allow_anonymous" in line for line in lines) else ["allow_anonymous true"]
            return "\n".join([*first, *anonymous, *lines]) + "\n"

        monkeypatch.setattr(process, "mosquitto_conf", conf)
        return start_mosquitto()

    return begin


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Broker]:
    broker = start(BrokerSettings(directory=tmp_path / "embedded"), Kind.EMBEDDED)
    yield broker
    broker.stop()


def url_of(broker: Broker) -> str:
    return f"mqtt://127.0.0.1:{broker.settings.port}"


def bench_at(broker: Broker, *, user: str | None = None, agent: str = "press-3") -> Bench:
    address = BrokerAddress.parse(url_of(broker), user=user, password=user)
    return Bench(address, TOPICS, agent, chunk_bytes=61440)


def left_at(broker: Broker) -> list[str]:
    """Topics that are retained there."""
    with BareClient(BrokerAddress.parse(url_of(broker)), "looks") as client:
        client.subscribe(["#"])
        client.send(Packet(topic="end", payload=b""))
        topics = []
        while (packet := client.hear()[0]).topic != "end":
            topics += [packet.topic] if packet.retain else []
    return topics


def checked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, dict[str, object]]]:
    """Exit code, and findings by point."""
    code = check.main([*words, "--json", "--topic-prefix=plant7/"])
    told = json.loads(capsys.readouterr().out)
    assert told["left"] == []
    return code, {each["point"]: each for each in told["points"]}


def test_our_own_configuration_is_ok_in_every_point(
    start_mosquitto: StartBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    broker = start_mosquitto()
    code, found = checked(capsys, url_of(broker), "--quick")
    assert code == 0
    assert {point for point, each in found.items() if each["verdict"] != "ok"} <= TIMED
    assert len(found) == 11
    assert left_at(broker) == []


def test_a_check_keeps_to_the_rates_of_a_shared_broker(
    start_mosquitto: StartBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    breaches: list[bytes] = []

    def watch() -> Callable[[str, bytes, float], bool]:
        meter, stream = Meter(440), Stream()

        def goes_on(way: str, data: bytes, now: float) -> bool:
            said = stream.feed(data) if way == UP else ()
            breaches.extend(raw.body for raw in said if raw.kind == PUBLISH and meter.runs_over(1, now))
            return not breaches

        return goes_on

    with contextlib.closing(TcpProxy(start_mosquitto().settings.port, watch)) as proxy:
        code, found = checked(capsys, f"mqtt://127.0.0.1:{proxy.port}", "--quick", "--max-rate=400/s")
    assert breaches == []
    assert code == 0
    assert {point for point, each in found.items() if each["verdict"] != "ok"} <= TIMED


def test_the_embedded_broker_shows_a_hundred_retained_messages(
    embedded: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = checked(capsys, url_of(embedded), "--quick")
    assert code == 0
    assert found["many retained"]["verdict"] == "too small"
    assert found["many retained"]["measured"] == {
        "sent": QUICK.retained,
        "by_wildcard": 100,
        "asked_by_name": 38,
        "by_name": 38,
    }
    assert found["versions"]["verdict"] == "absent"


@pytest.mark.parametrize("line", ["message_size_limit 20000", "max_packet_size 20000"])
def test_a_small_message_limit_is_found(start_configured: StartConfigured, line: str) -> None:
    seen = probes.payload(bench_at(start_configured(line)))
    assert 20000 - 2 * probes.FINEST_BYTES - probes.FINEST_BYTES < seen.largest_bytes <= 20000
    assert points.judge_payload(seen).fails


def test_a_limit_above_the_chunks_is_told_and_does_not_fail(start_configured: StartConfigured) -> None:
    seen = probes.payload(bench_at(start_configured("message_size_limit 131072")))
    assert seen.largest_bytes <= 131072 < (seen.refused_bytes or 0)
    assert not points.judge_payload(seen).fails


def test_a_small_queue_is_found(start_configured: StartConfigured) -> None:
    finding = points.judge_queue(loads.queue_depth(bench_at(start_configured("max_queued_messages 50")), 500))
    assert (finding.verdict, finding.fails) == (Verdict.TOO_SMALL, True)
    assert finding.measured["acknowledged"] == 500
    assert finding.measured["delivered"] == 70  # and twenty that are in flight


def test_a_broker_without_retained_messages_is_found(start_configured: StartConfigured) -> None:
    bench = bench_at(start_configured("retain_available false"))
    seen = probes.retained(bench, 61440)
    assert not seen.kept
    assert points.judge_many_retained(probes.many_retained(bench, 40)).verdict is Verdict.ABSENT


def test_a_last_will_that_is_not_retained_is_found(start_configured: StartConfigured) -> None:
    finding = points.judge_will(probes.last_will(bench_at(start_configured("retain_available false"))))
    assert (finding.fails, finding.said) == (True, "a client with a retained will is not let in")


def test_nagles_algorithm_is_named(start_configured: StartConfigured) -> None:
    bench = bench_at(start_configured())
    # A busy machine can be so slow to agents that the timer does not stand out.
    attempts = (points.judge_trip(loads.round_trips(bench)) for _ in range(3))
    finding = next(each for each in attempts if "Nagle" in each.said)
    assert finding.verdict is Verdict.SLOW
    assert finding.fixes["mosquitto"] == "set_tcp_nodelay true"


def test_qos_that_the_broker_does_not_grant_is_found(start_configured: StartConfigured) -> None:
    # Mosquitto hangs up on a QoS that its listener does not allow.
    finding = points.judge_qos(probes.qos(bench_at(start_configured("max_qos 0"))))
    assert finding.fails


@pytest.fixture
def confined(start_configured: StartConfigured, tmp_path: Path) -> Broker:
    """Knows press-3 and anna, both with a device's rights."""
    users, rules = tmp_path / "users", tmp_path / "acl"
    for name, more in (("press-3", ["-c"]), ("anna", [])):
        subprocess.run(
            ["mosquitto_passwd", *more, "-b", str(users), name, name], check=True, capture_output=True
        )
    rules.write_text("\n".join(acl_lines(DEVICE, TOPICS, "")))
    return start_configured("allow_anonymous false", f"password_file {users}", f"acl_file {rules}")


@pytest.mark.parametrize("version5", [True, False])
def test_a_devices_user_may_be_a_device_and_nothing_else(confined: Broker, version5: bool) -> None:
    seen = probes.rights(bench_at(confined, user="press-3"), version5=version5)
    finding = judge_rights(seen, Role.ANY, TOPICS, "press-3")
    assert finding.measured["roles"] == ["device"]
    assert judge_rights(seen, Role.CLOUD, TOPICS, "press-3").fails


def test_with_mqtt_5_each_right_to_write_is_known(confined: Broker) -> None:
    seen = probes.rights(bench_at(confined, user="press-3"), version5=True)
    allowed = {name for name, access in seen.items() if access.write}
    assert allowed == {"state", "lan", "update", "metrics", "probe"}
    assert all(access.write is not None for access in seen.values())


def test_a_user_who_may_not_use_the_topics_of_the_check_is_told_the_rule(confined: Broker) -> None:
    with pytest.raises(RefusedError, match="does not let this user hear itself") as caught:
        reach(bench_at(confined, user="anna", agent="press-3"))
    assert f"pattern readwrite {ROOT}probe/%u/#)" in caught.value.fix


def test_a_role_that_the_user_cannot_play_ends_with_code_7(
    confined: Broker, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "password").write_text("press-3\n")
    access = ["--user=press-3", f"--password-file={tmp_path / 'password'}"]
    code, found = checked(capsys, url_of(confined), *access, "--role=cloud", "--quick")
    assert code == 7
    assert [point for point, each in found.items() if each["fails"]] == ["rights"]


def test_a_wrong_password_is_refused(confined: Broker) -> None:
    with pytest.raises(RefusedError):
        check.main([url_of(confined), "--user=nobody", "--quick"])


def test_nobody_at_the_address_is_said() -> None:
    with pytest.raises(BrokerUnreachableError):
        check.main(["mqtt://127.0.0.1:1", "--quick"])


def test_takeover_and_last_will_work_on_mosquitto(start_configured: StartConfigured) -> None:
    bench = bench_at(start_configured())
    assert not points.judge_takeover(probes.takeover(bench)).fixes
    assert points.judge_will(probes.last_will(bench)).verdict is Verdict.OK


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_retained_is_cleared_when_a_signal_ends_it(start_mosquitto: StartBroker, number: int) -> None:
    broker = start_mosquitto()
    words = [sys.executable, "-m", "iotsplit", "broker", "check", url_of(broker), "--quick"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if "many retained" in line:
                break
        assert left_at(broker) != []
        running.send_signal(number)
        running.stdout.read()
    assert running.returncode == 130
    assert left_at(broker) == []


def test_a_client_that_is_interrupted_while_it_connects_leaves_no_will(
    start_mosquitto: StartBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = start_mosquitto()
    will = Packet(topic=f"{ROOT}probe/hasty/will", payload=b"gone", retain=True)
    client = BareClient(BrokerAddress.parse(url_of(broker)), "hasty", Manners(last_will=will))

    def interrupted(*_: object) -> bool:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(client, "_wait", interrupted)
    with pytest.raises(KeyboardInterrupt), client:
        pass
    client.cut()
    assert left_at(broker) == []


def test_nothing_outside_of_the_fleets_topics_is_touched(
    start_mosquitto: StartBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    broker = start_mosquitto()
    with BareClient(BrokerAddress.parse(url_of(broker)), "looks") as client:
        client.subscribe(["#"], qos=0)
        checked(capsys, url_of(broker), "--quick", "--id=press-3")
        topics = {packet.topic for packet in client.hear(100_000, timeout_s=30.0, quiet_s=1.0)}
    assert topics
    assert all(topic.startswith(ROOT) for topic in topics)
    ours = {topic for topic in topics if "/probe/press-3/" not in topic}
    assert len(ours) == 15  # one of each kind, for the rights


def test_a_broker_that_dies_leaves_points_untested_and_says_what_may_be_left(
    start_mosquitto: StartBroker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = start_mosquitto()
    whole = probes.many_retained

    def die(bench: Bench, count: int) -> points.ManyRetained:
        seen = whole(bench, count)
        broker.stop()
        return seen

    monkeypatch.setattr(probes, "many_retained", die)
    assert check.main([url_of(broker), "--quick"]) == 7
    said = capsys.readouterr()
    assert "FAIL  last will       not tested: nobody listens" in said.out
    assert "retained topics may be left" in said.err
