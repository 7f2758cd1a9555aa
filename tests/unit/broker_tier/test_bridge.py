"""The bridge section: what it says, what is refused, and which version it takes."""

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from iotsplit.errors import BrokerUnreachableError, UsageError
from iotsplit.runtime.address import BrokerAddress
from iotsplit.runtime.connection import explain
from iotsplit_broker.configuration.bridge import main
from iotsplit_broker.configuration.version import is_v5, speaks_v5

ENDS = ["--local=mqtt://127.0.0.1", "--remote=mqtt://cloud.example", "--protocol=v5"]


def section(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main([*ENDS, *words]) == 0
    return capsys.readouterr().out.splitlines()


def topics(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("topic ")]


@pytest.fixture
def password(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text("pass word\n")
    return path


def test_each_side_has_its_own_prefix(capsys: pytest.CaptureFixture[str]) -> None:
    told = topics(section(capsys, "--prefix=plant7/", "--local-prefix=line/3/", "--fleet=f"))
    assert "topic wan/cloud/+/+ out 1 line/3/iotsplit/f/ plant7/iotsplit/f/" in told
    assert all(line.endswith(" line/3/iotsplit/f/ plant7/iotsplit/f/") for line in told)


def test_fleets_that_begin_alike_have_bridges_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    names = [
        {line for line in section(capsys, f"--fleet=production-line{number}") if line.startswith("connection ")}
        for number in (1, 2)
    ]
    assert names[0]
    assert names[0].isdisjoint(names[1])


def test_lan_and_checkpoints_stay_and_nobody_is_told_of_a_price(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(ENDS) == 0
    out, err = capsys.readouterr()
    assert not [
        line for line in topics(out.splitlines()) if line.split()[1].split("/")[0] in ("lan", "checkpoint")
    ]
    assert err == ""


def test_a_standby_costs_what_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ENDS, "--cloud-standby=spare"]) == 0
    out, err = capsys.readouterr()
    assert "topic lan/spare/+/+ out 1 iotsplit/default/ iotsplit/default/" in out
    assert "topic checkpoint/+/+/+ both 1 iotsplit/default/ iotsplit/default/" in out
    assert "privacy: while spare stands in" in err
    assert "bytes: 12 for each LoRA parameter" in err
    assert all(f"# {line.removeprefix('iotsplit: ')}" in out for line in err.splitlines())


def test_named_edges_keep_what_is_for_others_away(capsys: pytest.CaptureFixture[str]) -> None:
    told = [line.split()[1] for line in topics(section(capsys, "--edges=edge-1,edge-2", "--cloud=c"))]
    assert {"wan/edge-1/c/+", "wan/edge-2/c/+", "wan/c/+/+"} <= set(told)
    assert "wan/+/c/+" not in told


def test_tls_takes_the_systems_authorities_or_the_one_that_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    secure = ["--local=mqtt://127.0.0.1", "--remote=mqtts://cloud.example", "--protocol=v311"]
    main(secure)
    assert "bridge_capath /etc/ssl/certs" in capsys.readouterr().out.splitlines()
    main(
        [
            *secure,
            f"--ca-file={tmp_path / 'ca'}",
            f"--cert-file={tmp_path / 'c'}",
            f"--key-file={tmp_path / 'k'}",
        ]
    )
    told = capsys.readouterr().out.splitlines()
    assert f"bridge_cafile {tmp_path / 'ca'}" in told
    assert {f"bridge_certfile {tmp_path / 'c'}", f"bridge_keyfile {tmp_path / 'k'}"} <= set(told)
    assert {"address cloud.example:8883", "bridge_protocol_version mqttv311", "try_private true"} <= set(told)


def test_a_password_goes_into_a_file_that_only_its_owner_reads(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, password: Path
) -> None:
    file = tmp_path / "conf.d" / "bridge.conf"
    words = [*ENDS, "--user=there,back", "--name=plant7", f"--password-file={password}"]
    with pytest.raises(UsageError, match="holds a password"):
        main(words)
    assert main([*words, f"--output={file}"]) == 0
    assert capsys.readouterr().out == f"{file}\n"
    out, coming = [set(part.splitlines()) for part in file.read_text().split("\nconnection ")[1:]]
    assert {"plant7-out", "remote_clientid plant7-out", "remote_username there"} <= out
    assert {"plant7-in", "remote_clientid plant7-in", "remote_username back"} <= coming
    assert "remote_password pass word" in out & coming
    assert file.stat().st_mode & 0o077 == 0


def test_a_file_that_is_there_stays_unless_forced(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "bridge.conf"
    file.write_text("mine")
    with pytest.raises(UsageError, match="is there; choose another --output, or --force"):
        main([*ENDS, f"--output={file}"])
    assert file.read_text() == "mine"
    main([*ENDS, f"--output={file}", "--force", "--json"])
    assert json.loads(capsys.readouterr().out) == {"written": [str(file)]}
    assert "connection" in file.read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--remote=ws://cloud.example"], "cannot use ws://cloud.example:80"),
        (["--remote=mqtt://127.0.0.1"], "is both ends"),
        (["--remote=mqtt://u:p@cloud.example"], "holds a password"),
        (["--prefix=plant7"], "topic prefix 'plant7' is not one"),
        (["--prefix=plant 7/"], "characters that mean something"),
        (["--local-prefix=a\nlistener 1/"], "characters that mean something"),
        (["--fleet=a/b"], "fleet 'a/b' is not a name"),
        (["--cloud=a b"], "user 'a b' cannot be named"),
        (["--edges=e,+"], "user '\\+' cannot be named"),
        (["--edges=e", "--cloud-standby=e"], "edge e is on both sides"),
        (["--name=has.dot"], "name 'has.dot' cannot be a client id"),
        (["--user=u"], "a user needs a password"),
        (["--user=a,b,c"], "3 users are given"),
        (["--cert-file=c"], "a certificate needs its key"),
        (["--cert-file=c", "--key-file=k"], "is not encrypted"),
        (["--ca-file=c"], "is not encrypted"),
        (["--protocol=6"], "--protocol"),
        (["--password-file=/nowhere"], "password file /nowhere cannot be read"),
    ],
)
def test_what_cannot_work_is_refused(words: list[str], told: str) -> None:
    mine = {word.partition("=")[0] for word in words}
    with pytest.raises(UsageError, match=told):
        main([*(word for word in ENDS if word.partition("=")[0] not in mine), *words])


def test_a_password_without_a_user_is_refused(password: Path) -> None:
    with pytest.raises(UsageError, match="a password a user"):
        main([*ENDS, f"--password-file={password}"])


@pytest.mark.parametrize("wrong", ["", "a\x01b"])
def test_a_password_that_a_line_cannot_hold_is_refused(password: Path, wrong: str) -> None:
    password.write_text(wrong)
    with pytest.raises(UsageError, match="bridge's user or password"):
        main([*ENDS, "--user=u", f"--password-file={password}"])


# --- which version


class Answering:
    """A broker that gives every connection one answer."""

    def __init__(self, answer: bytes) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"mqtt://127.0.0.1:{self._listener.getsockname()[1]}"
        self._answer = answer
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                client.recv(64)
                client.sendall(self._answer)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


V5 = bytes.fromhex("2003000000")
V311_REFUSES = bytes.fromhex("20020001")


@pytest.fixture
def answers(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    brokers = [Answering(each) for each in request.param]
    yield [each.url for each in brokers]
    for each in brokers:
        each.close()


@pytest.mark.parametrize(
    ("answers", "version"),
    [
        ((V5, V5), "mqttv50"),
        ((V5, V311_REFUSES), "mqttv311"),
        ((V311_REFUSES, V5), "mqttv311"),
        ((V5, b""), "mqttv311"),
    ],
    indirect=["answers"],
)
def test_v5_is_taken_where_both_have_it(
    capsys: pytest.CaptureFixture[str], answers: list[str], version: str
) -> None:
    main([f"--local={answers[0]}", f"--remote={answers[1]}"])
    assert f"bridge_protocol_version {version}" in capsys.readouterr().out.splitlines()


def test_a_broker_that_nobody_can_ask_is_named_with_the_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(
        BrokerUnreachableError, match=rf"nobody listens at mqtt://127.0.0.1:{port}; .*--protocol v5"
    ):
        main([f"--local=mqtt://127.0.0.1:{port}", "--remote=mqtt://cloud.example"])


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("2003000000", True),
        ("2003008700", True),  # not authorised, said in MQTT 5
        ("20080087050000000000", True),
        ("2003008400", False),  # unsupported protocol version
        ("20020001", False),
        ("20020000", False),
        ("", False),
        ("485454502f", False),
    ],
)
def test_a_connack_with_properties_is_of_mqtt_5(answer: str, expected: bool) -> None:
    assert is_v5(bytes.fromhex(answer)) is expected


def test_a_broker_that_resets_the_connection_speaks_no_v5() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def reset() -> None:
            client, _ = listener.accept()
            client.recv(64)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            client.close()

        threading.Thread(target=reset, daemon=True).start()
        address = BrokerAddress.parse(f"mqtt://127.0.0.1:{listener.getsockname()[1]}")
        assert not speaks_v5(address, explain)


def test_each_way_has_a_connection_and_what_goes_both_ways_is_on_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = "\n".join(section(capsys, "--cloud-standby=spare"))
    out, coming = [topics(part.splitlines()) for part in text.split("\nconnection ")[1:]]
    assert {line.split()[2] for line in out} == {"out", "both"}
    assert {line.split()[2] for line in coming} == {"in"}


def test_a_password_in_the_environment_is_for_a_user_that_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IOTSPLIT_PASSWORD", "hush")
    assert "hush" not in "\n".join(section(capsys))
    main([*ENDS, "--user=u", f"--output={tmp_path / 'bridge.conf'}"])
    assert (tmp_path / "bridge.conf").read_text().count("remote_password hush\n") == 2
