"""``iotsplit broker check`` at a Mosquitto that ``iotsplit broker config`` has set up, with our access list."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from iotsplit.errors import RefusedError
from iotsplit_broker.checking import check, examination
from iotsplit_broker.configuration import config
from iotsplit_broker.process import Broker
from tests.broker.conftest import StartBroker
from tests.broker.sites import SECRET, users_file

pytestmark = [pytest.mark.broker, pytest.mark.slow]

ROOT = "plant7/iotsplit/f/"
PLACE = ("--fleet=f", "--topic-prefix=plant7/")
ROLES = {"press": "device", "edge-1": "edge", "cloud": "cloud"}
TIMED = {"round trip", "speed"}  # what a busy machine makes slow


@pytest.fixture(autouse=True)
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take as long as it likes."""
    monkeypatch.setattr(examination, "QUICK", replace(examination.QUICK, limit_s=600.0))


@pytest.fixture
def rules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The access list."""
    config.main(["--for=mosquitto", *PLACE, "--edges=edge-1", f"--output={tmp_path}"])
    capsys.readouterr()
    return tmp_path / "iotsplit.acl"


@pytest.fixture
def begin(tmp_path: Path, rules: Path, start_mosquitto: StartBroker) -> StartBroker:
    """Starts Mosquitto with it."""
    users = users_file(tmp_path / "users", ROLES)
    (tmp_path / "password").write_text(SECRET)
    return lambda: start_mosquitto(users_file=users, acl_file=rules)


def checked(broker: Broker, user: str, tmp_path: Path) -> int:
    words = [f"--user={user}", f"--password-file={tmp_path / 'password'}", f"--role={ROLES[user]}"]
    return check.main([f"mqtt://127.0.0.1:{broker.settings.port}", *PLACE, *words, "--quick", "--json"])


def without(rules: Path, line: str) -> None:
    text = rules.read_text()
    assert f"{line}\n" in text
    rules.write_text(text.replace(f"{line}\n", ""))


@pytest.mark.parametrize("user", ROLES)
def test_each_credential_of_ours_is_fit_for_its_role(
    begin: StartBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str], user: str
) -> None:
    code = checked(begin(), user, tmp_path)
    told = json.loads(capsys.readouterr().out)
    assert code == 0, told
    assert told["left"] == []
    verdicts = {each["point"]: each["verdict"] for each in told["points"]}
    assert {point for point, verdict in verdicts.items() if verdict != "ok"} <= {*TIMED, "queue"}
    [rights] = [each["measured"]["roles"] for each in told["points"] if each["point"] == "rights"]
    assert ROLES[user] in rights


def test_a_rule_that_is_gone_is_named(
    begin: StartBroker, rules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = f"pattern write {ROOT}lan/+/%u/#"
    without(rules, gone)
    assert checked(begin(), "press", tmp_path) == 7
    points = json.loads(capsys.readouterr().out)["points"]
    [failed] = [each for each in points if each["fails"]]
    assert failed["point"] == "rights"
    assert failed["fixes"]["mosquitto"] == f"in acl_file: {gone}"


def test_without_the_topics_of_the_check_nothing_can_be_seen(
    begin: StartBroker, rules: Path, tmp_path: Path
) -> None:
    gone = f"pattern readwrite {ROOT}probe/%u/#"
    without(rules, gone)
    with pytest.raises(RefusedError) as caught:
        checked(begin(), "press", tmp_path)
    assert f"(mosquitto: {gone})" in caught.value.fix
